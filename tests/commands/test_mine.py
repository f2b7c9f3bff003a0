"""Hard prompts out of a journal, as a file that training reads."""

import json
from pathlib import Path

import pytest

from yaoki.commands.mine import Mined, mine
from yaoki.config.load import load_config
from yaoki.data.files import read_tasks
from yaoki.errors import NothingThereError, RefusedError, UsageError
from yaoki.journal.journal import JournalIdentity, RolloutJournal
from yaoki.journal.layout import step_name
from yaoki.runs.directory import RunDirectory
from yaoki.types import (
    Completion,
    FinishReason,
    Prompt,
    Rollout,
    RolloutKey,
    Task,
    Verdict,
    VerdictReason,
    make_task,
)

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
GROUP_SIZE = 4
TASKS = [
    make_task(f"What is\n{index} \u00d7 2, \u201cexactly\u201d?", f"\\frac{{{index}}}{{1}}", "a.json")
    for index in range(5)
]


def group(step: int, index: int, task: Task, num_correct: int, size: int = GROUP_SIZE) -> list[Rollout]:
    prompt = Prompt(task, task.problem, (1, 2))
    return [
        Rollout(
            RolloutKey(step, index, sample),
            0,
            prompt,
            Completion((3,), (-1.0,), "x", FinishReason.EOS),
            Verdict(
                float(sample < num_correct),
                VerdictReason.CORRECT if sample < num_correct else VerdictReason.WRONG,
            ),
        )
        for sample in range(size)
    ]


def write_step(run: RunDirectory, step: int, groups: list[list[Rollout]]) -> None:
    identity = JournalIdentity(run.run_id, "c0ffee", 1)
    with RolloutJournal(run.rollouts, identity, flush_seconds=60, flush_rollouts=100) as journal:
        journal.open_step(step, 0, [rollouts[0].prompt for rollouts in groups])
        for rollouts in groups:
            journal.append(rollouts)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Three steps; tasks 0 and 1 were met twice, task 4 has no complete group."""
    run = RunDirectory(tmp_path / "run")
    run.create(load_config(TINY, [f"train.group_size={GROUP_SIZE}"]))
    write_step(run, 1, [group(1, 0, TASKS[0], 4), group(1, 1, TASKS[1], 0)])
    write_step(run, 2, [group(2, 0, TASKS[2], 1), group(2, 1, TASKS[1], 3)])
    write_step(run, 3, [group(3, 0, TASKS[3], 2), group(3, 1, TASKS[0], 0), group(3, 2, TASKS[4], 0, size=3)])
    return run


def mined(run: RunDirectory, target: Path, max_correct: int) -> Mined:
    seen: list[tuple[int, int]] = []
    found = mine(
        run, target, max_correct=max_correct, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    return found


@pytest.mark.parametrize(("max_correct", "hard"), [(0, [0]), (1, [2, 0]), (2, [2, 3, 0]), (3, [2, 1, 3, 0])])
def test_hard_prompts_are_a_training_file(
    run: RunDirectory, tmp_path: Path, max_correct: int, hard: list[int]
) -> None:
    """The newest complete group counts: task 0 was easy once, and task 1 was hard."""
    target = tmp_path / "new" / "hard.json"
    found = mined(run, target, max_correct)
    assert found == Mined(target, 1, 3, num_prompts=4, num_kept=len(hard), refused=())
    for form in ("orz", "auto"):
        read = read_tasks([target], format=form, problem_column="", answer_column="", on_bad_row="error")
        assert [(task.uid, task.problem, task.answer) for task in read.tasks] == [
            (TASKS[index].uid, TASKS[index].problem, TASKS[index].answer) for index in hard
        ]


def test_the_file_says_how_often_each_was_solved(run: RunDirectory, tmp_path: Path) -> None:
    mined(run, tmp_path / "hard.json", 2)
    rows = json.loads((tmp_path / "hard.json").read_text("utf-8"))
    assert [row[1]["ground_truth"]["pass_at_n"] for row in rows] == [0.25, 0.5, 0.0]
    assert [turn["from"] for turn in rows[0]] == ["human", "assistant"]


def test_a_damaged_part_is_left_out_and_named(run: RunDirectory, tmp_path: Path) -> None:
    (part,) = (run.rollouts / step_name(3)).iterdir()
    part.write_bytes(b"")
    found = mined(run, tmp_path / "hard.json", 1)
    assert (found.num_prompts, found.num_kept) == (3, 1)
    assert [text.startswith(str(part)) for text in found.refused] == [True]


def test_nothing_is_overwritten(run: RunDirectory, tmp_path: Path) -> None:
    target = tmp_path / "mine.json"
    target.write_text("precious")
    with pytest.raises(RefusedError, match=r"mine\.json already exists"):
        mine(run, target, max_correct=1, on_progress=lambda done, total: None)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("max_correct", [-1, GROUP_SIZE])
def test_a_bound_that_selects_nothing_or_all(run: RunDirectory, tmp_path: Path, max_correct: int) -> None:
    with pytest.raises(
        UsageError, match=f"--max-correct is {max_correct}, but a group has 4 completions"
    ) as caught:
        mine(run, tmp_path / "hard.json", max_correct=max_correct, on_progress=lambda done, total: None)
    assert "0 up to 3" in str(caught.value.hint)


def test_no_hard_prompts_is_no_file(run: RunDirectory, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (run.rollouts / step_name(step)).rename(tmp_path / str(step))
    target = tmp_path / "hard.json"
    with pytest.raises(NothingThereError, match="none of the 0 prompts in the journal"):
        mine(run, target, max_correct=1, on_progress=lambda done, total: None)
    write_step(run, 4, [group(4, 0, TASKS[0], 4), group(4, 1, TASKS[1], 2)])
    with pytest.raises(NothingThereError, match=r"none of the 2 prompts .* was solved 1 of 4 times or less"):
        mine(run, target, max_correct=1, on_progress=lambda done, total: None)
    assert not target.exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError, match="no run"):
        mine(RunDirectory(tmp_path), tmp_path / "x", max_correct=1, on_progress=lambda done, total: None)
