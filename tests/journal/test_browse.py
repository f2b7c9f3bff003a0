"""Rows and groups of a step, each rollout once; damaged segments are named and not moved."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaoki.errors import NothingThereError
from yaoki.journal.browse import GroupResult, RolloutRow, read_step, step_groups, step_rows, write_completions
from yaoki.journal.layout import step_name
from yaoki.journal.segments import SEGMENT_SCHEMA
from yaoki.types import RolloutKey

from .samples import KEYS, PROMPTS, STEP, VERSION, batch, journal, rollout


def journaled(run: Path, *batches: list, attempt: int = 1) -> Path:
    """The `rollouts/` of a run, with a segment for each of the micro-batches."""
    with journal(run, attempt) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        for each in batches:
            log.append(each)
            log.sync()
    return run / "rollouts"


def keys_of(rows: list[RolloutRow]) -> list[RolloutKey]:
    return [RolloutKey(row.step, row.prompt, row.sample) for row in rows]


def test_rows_are_what_was_sampled_in_order(tmp_path: Path) -> None:
    directory = journaled(tmp_path, batch(KEYS[4:], reward=0.0), batch(KEYS[:4], num_tokens=5))
    rows, rejected = step_rows(directory, STEP)
    assert rejected == []
    assert keys_of(rows) == KEYS
    made = rollout(0, 0, num_tokens=5)
    assert rows[0] == RolloutRow(
        step=STEP,
        prompt=0,
        sample=0,
        policy_version=VERSION,
        attempt=1,
        task_uid=PROMPTS[0].task.uid,
        problem="0+0=",
        answer="0",
        reward=1.0,
        verdict="correct",
        extracted="0",
        finish_reason="eos",
        num_tokens=5,
        text=made.completion.text,
    )


@given(
    prompt=st.none() | st.integers(0, 5),
    correct=st.none() | st.booleans(),
    rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=8),
)
@settings(max_examples=25)
def test_rows_are_chosen(
    tmp_path_factory: pytest.TempPathFactory, prompt: int | None, correct: bool | None, rewards: list[float]
) -> None:
    made = [rollout(key.prompt, key.sample, reward=reward) for key, reward in zip(KEYS, rewards, strict=True)]
    directory = journaled(tmp_path_factory.mktemp("run"), made)
    rows, _ = step_rows(directory, STEP, prompt=prompt, correct=correct)
    assert keys_of(rows) == [
        key
        for key, reward in zip(KEYS, rewards, strict=True)
        if prompt in (None, key.prompt) and correct in (None, bool(reward))
    ]


def test_the_whole_table_has_every_column(tmp_path: Path) -> None:
    table, _ = read_step(journaled(tmp_path, batch(KEYS)), STEP)
    assert table.schema.equals(SEGMENT_SCHEMA)
    assert table["token_ids"].to_pylist() == [list(r.completion.token_ids) for r in batch(KEYS)]
    assert table["logprobs"].to_pylist() == [list(r.completion.logprobs) for r in batch(KEYS)]


def test_each_rollout_is_there_once(tmp_path: Path) -> None:
    """The first attempt's, as on a resume."""
    journaled(tmp_path / "later", batch(KEYS[2:6], variant=1), attempt=2)
    directory = journaled(tmp_path, batch(KEYS[:4]))
    for path in (tmp_path / "later" / "rollouts" / step_name(STEP)).iterdir():
        path.rename(directory / step_name(STEP) / path.name)
    table, _ = read_step(directory, STEP, ["sample", "prompt", "attempt"])
    assert table.column_names == ["sample", "prompt", "attempt"]
    assert table["attempt"].to_pylist() == [1, 1, 1, 1, 2, 2]


def test_the_order_is_that_of_prompts_then_samples(tmp_path: Path) -> None:
    keys = [RolloutKey(STEP, *key) for key in [(1, 0), (0, 70_000), (0, 3), (2, 1), (0, 5), (1, 2)]]
    rows, _ = step_rows(journaled(tmp_path, batch(keys)), STEP)
    assert keys_of(rows) == sorted(keys)


def test_a_damaged_segment_is_named_and_stays(tmp_path: Path) -> None:
    directory = journaled(tmp_path, batch(KEYS[:4]), batch(KEYS[4:]))
    first, second = sorted((directory / step_name(STEP)).iterdir())
    os.truncate(first, 1000)
    rows, rejected = step_rows(directory, STEP)
    assert keys_of(rows) == KEYS[4:]
    assert [str(found).partition(":")[0] for found in rejected] == [str(first)]
    os.truncate(second, 0)
    rows, rejected = step_rows(directory, STEP, prompt=2, correct=True)
    assert (rows, len(rejected)) == ([], 2)
    assert step_groups(directory, STEP) == ([], rejected)
    assert first.exists()
    assert second.exists()


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    directory = journaled(tmp_path, batch(KEYS))
    with pytest.raises(NothingThereError, match="holds nothing of step 9") as caught:
        step_rows(directory, 9)
    assert f"it holds 1 steps, {STEP} to {STEP}" in str(caught.value.hint)
    with pytest.raises(NothingThereError) as caught:
        step_groups(tmp_path / "none", STEP)
    assert "it is empty" in str(caught.value.hint)


def test_groups_count_what_was_correct(tmp_path: Path) -> None:
    made = [
        rollout(*place, reward=float(place in [(0, 0), (2, 0), (2, 1)]))
        for place in [(key.prompt, key.sample) for key in KEYS]
        if place != (3, 1)
    ]
    groups, rejected = step_groups(journaled(tmp_path, made[:3], made[3:]), STEP)
    assert rejected == []
    assert groups == [
        GroupResult(
            STEP, index, f"{index:016x}", f"{index}+{index}=", str(2 * index), num_samples, num_correct
        )
        for index, (num_samples, num_correct) in enumerate([(2, 1), (2, 0), (2, 2), (1, 0)])
    ]


def test_completions_have_the_same_columns(tmp_path: Path) -> None:
    """Those of a rollout: engine and attempt are the journal's own."""
    path = tmp_path / "new" / "completions.parquet"
    write_completions(path, batch(KEYS))
    table, _ = read_step(journaled(tmp_path, batch(KEYS)), STEP)
    assert pq.read_table(path).equals(table.drop_columns(["engine", "attempt"]))
    write_completions(path, batch(KEYS[:1]))
    assert len(pq.read_table(path)) == 1
    assert os.listdir(path.parent) == [path.name]
