"""`yaoki mine`: the hard prompts of a run's journal as a training file. Needs no torch.

Open-Reasoner-Zero's annealing stage trains on the prompts that its policy solved fewer than 4 of 64 times.
A prompt is rated by its newest complete group; older groups, sampled by an earlier policy, are ignored.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yaoki import fs
from yaoki.errors import NothingThereError, RefusedError, UsageError
from yaoki.journal.browse import GroupResult, step_groups
from yaoki.journal.retention import journaled_steps
from yaoki.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Mined:
    """The file that was written, and what it was selected from."""

    path: Path
    first_step: int
    last_step: int
    """Range of the steps in the journal."""
    num_prompts: int
    """Different tasks with a complete group."""
    num_kept: int
    """Tasks in the file."""
    refused: tuple[str, ...]
    """Damaged segments of the journal, which were left out."""


def mine(
    directory: RunDirectory, target: Path, *, max_correct: int, on_progress: Callable[[int, int], None]
) -> Mined:
    """Write the tasks that were solved at most `max_correct` times in their newest group to `target`.

    The file has Open-Reasoner-Zero's training format (data.format="orz"), in the order in which the prompts
    were last sampled, with the share of correct samples as `pass_at_n` beside each answer. It appears
    complete or not at all. `on_progress(done, total)` counts steps.

    Raises:
        UsageError: `max_correct` excludes no group.
        RefusedError: `target` exists.
        NothingThereError: there is no run, no journal or no such prompt.
    """
    directory.require_run()
    group_size = directory.stored_config().train.group_size
    if not 0 <= max_correct < group_size:
        raise UsageError(
            f"--max-correct is {max_correct}, but a group has {group_size} completions",
            hint=f"set it to 0 up to {group_size - 1}",
        )
    if target.exists():
        raise RefusedError(f"{target} already exists", hint="name a new file with --to")
    steps = journaled_steps(directory.rollouts)
    newest, refused = _newest_groups(directory.rollouts, steps, group_size, on_progress)
    hard = [group for group in newest if group.num_correct <= max_correct]
    if not hard:
        raise NothingThereError(
            f"none of the {len(newest)} prompts in the journal of {directory.path} was solved "
            f"{max_correct} of {group_size} times or less",
            hint='raise --max-correct, or train with journal.keep="all" so that the journal keeps every step',
        )
    rows = [_conversation(group) for group in hard]
    fs.make_directory(target.parent)
    fs.publish(target, (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode())
    return Mined(target, steps[0], steps[-1], len(newest), len(hard), tuple(refused))


def _newest_groups(
    rollouts: Path, steps: list[int], group_size: int, on_progress: Callable[[int, int], None]
) -> tuple[list[GroupResult], list[str]]:
    """The newest complete group of each task, ordered by (step, prompt); and the damaged segments."""
    newest: dict[str, GroupResult] = {}
    refused: list[str] = []
    for done, step in enumerate(reversed(steps), start=1):
        groups, damaged = step_groups(rollouts, step)
        refused += map(str, damaged)
        for group in reversed(groups):
            if group.num_samples == group_size:
                newest.setdefault(group.task_uid, group)
        on_progress(done, len(steps))
    return list(reversed(newest.values())), refused


def _conversation(group: GroupResult) -> list[dict[str, object]]:
    truth = {"value": group.answer, "pass_at_n": group.num_correct / group.num_samples}
    return [{"from": "human", "value": group.problem}, {"from": "assistant", "ground_truth": truth}]
