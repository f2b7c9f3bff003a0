"""The hard prompts of a run, straight from its journal, as a training file. No torch in here.

Open-Reasoner-Zero anneals on the prompts that its policy solved fewer than 4 of 64 times. How hard a prompt
is now is said by the newest step that sampled all of its group; what an earlier policy made of it does not
count. Knows nothing of how the journal is stored.
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
    """What was found, and where it is now."""

    path: Path
    first_step: int
    last_step: int
    """Range of the steps that the journal holds."""
    num_prompts: int
    """Different tasks that were looked at."""
    num_kept: int
    refused: tuple[str, ...]
    """Parts of the journal that are damaged and were left out."""


def mine(
    directory: RunDirectory, target: Path, *, max_correct: int, on_progress: Callable[[int, int], None]
) -> Mined:
    """Write the tasks that were solved at most `max_correct` times in their newest group to `target`.

    The file has Open-Reasoner-Zero's training form (data.format="orz"), in the order in which the prompts
    were last sampled; `pass_at_n` beside each answer says how often it was found. It appears whole or not at
    all. `on_progress(done, total)` counts steps. Raises UsageError if `max_correct` leaves nothing out,
    RefusedError if `target` exists, NothingThereError where there is no run, no journal or no such prompt.
    """
    directory.require_run()
    group_size = directory.stored_config().train.group_size
    if not 0 <= max_correct < group_size:
        raise UsageError(
            f"at most {max_correct} correct of a group of {group_size} is no selection",
            hint=f"set --max-correct to 0 up to {group_size - 1}",
        )
    if target.exists():
        raise RefusedError(f"{target} already exists", hint="name a new file with --to")
    steps = journaled_steps(directory.rollouts)
    newest, refused = _newest_groups(directory.rollouts, steps, group_size, on_progress)
    hard = [group for group in newest if group.num_correct <= max_correct]
    if not hard:
        raise NothingThereError(
            f"none of the {len(newest)} prompts in the journal of {directory.path} was solved "
            f"{max_correct} times of {group_size} or less",
            hint='raise --max-correct, or train with journal.keep="all" so that the journal holds every step',
        )
    rows = [_conversation(group) for group in hard]
    fs.make_directory(target.parent)
    fs.publish(target, (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode())
    return Mined(target, steps[0], steps[-1], len(newest), len(hard), tuple(refused))


def _newest_groups(
    rollouts: Path, steps: list[int], group_size: int, on_progress: Callable[[int, int], None]
) -> tuple[list[GroupResult], list[str]]:
    """Per task its newest complete group, in the order of (step, prompt); and what could not be read."""
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
