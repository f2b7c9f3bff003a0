"""What a journal holds and what may go."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki import fs
from yaoki.journal.layout import step_name
from yaoki.journal.retention import (
    JournalSummary,
    journal_summary,
    journaled_steps,
    prunable_steps,
    prune_steps,
)

from .samples import journal

STEPS = st.sets(st.integers(1, 40), max_size=20)


def make(directory: Path, *steps: int) -> None:
    for step in steps:
        (directory / step_name(step)).mkdir(parents=True)
        (directory / step_name(step) / "a.parquet").write_bytes(b"x" * step)


@given(STEPS, st.integers(0, 45))
def test_what_a_resume_may_need_is_never_pruned(steps: set[int], oldest: int) -> None:
    for keep in ("needed", "all", "every 3"):
        assert all(step <= oldest for step in prunable_steps(steps, oldest, keep))


@given(STEPS, st.integers(0, 45), st.integers(1, 7))
def test_what_is_pruned(steps: set[int], oldest: int, every: int) -> None:
    old = sorted(step for step in steps if step <= oldest)
    assert prunable_steps(steps, oldest, "needed") == old
    assert prunable_steps(steps, oldest, "all") == []
    assert prunable_steps(steps, oldest, f"every {every}") == [step for step in old if step % every]


@pytest.mark.parametrize(
    ("keep", "left"), [("needed", [5, 6]), ("every 2", [2, 4, 5, 6]), ("all", [1, 2, 3, 4, 5, 6])]
)
def test_pruning(tmp_path: Path, keep: str, left: list[int]) -> None:
    make(tmp_path, *range(1, 7))
    removed = prune_steps(tmp_path, 4, keep)
    assert removed == [tmp_path / step_name(step) for step in range(1, 7) if step not in left]
    assert journaled_steps(tmp_path) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(step) for step in left]
    assert prune_steps(tmp_path, 4, keep) == []


def test_a_removal_that_a_crash_cut_short_is_finished(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3)
    (tmp_path / step_name(1)).rename(tmp_path / (step_name(1) + fs.TRASH_SUFFIX))
    (tmp_path / ("mine" + fs.TRASH_SUFFIX)).mkdir()
    assert journaled_steps(tmp_path) == [2, 3]
    prune_steps(tmp_path, 0, "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.trash", step_name(2), step_name(3)]


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    names = ["step-1", "step-00000001.tmp", "step-0000000x", "STEP-00000001", "step-00000001 (copy)"]
    for name in names:
        (tmp_path / name).mkdir()
    assert journaled_steps(tmp_path) == []
    prune_steps(tmp_path, 10, "needed")
    assert len(list(tmp_path.iterdir())) == len(names)


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal_summary(tmp_path / "none") == JournalSummary(0, 0, 0, None, None)
    assert prune_steps(tmp_path / "none", 10, "needed") == []


def test_a_summary_counts_segments_and_bytes(tmp_path: Path) -> None:
    make(tmp_path, 3, 14)
    (tmp_path / step_name(14) / "b.parquet").write_bytes(b"xx")
    (tmp_path / step_name(14) / "c.parquet.tmp").write_bytes(b"xx")
    assert journal_summary(tmp_path) == JournalSummary(2, 3, 19, 3, 14)


def test_the_journal_prunes_itself(tmp_path: Path) -> None:
    make(tmp_path / "rollouts", 1, 2, 3)
    with journal(tmp_path) as log:
        assert log.prune(2, "needed") == [tmp_path / "rollouts" / step_name(step) for step in (1, 2)]
    assert journaled_steps(tmp_path / "rollouts") == [3]
