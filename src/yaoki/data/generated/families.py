"""Generated task families: infinite, seeded, with held-out tasks that training never sees.

A hash of the problem's text decides whether a task is held out, so training and held-out tasks are disjoint
for all seeds.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from yaoki.data.generated.arithmetic import Arithmetic
from yaoki.data.generated.countdown import Countdown
from yaoki.errors import DataError, UsageError, did_you_mean
from yaoki.seeding import Purpose, seed
from yaoki.types import Task

HELD_OUT_SEED = 8
"""The same for every run, so that runs with different seeds are evaluated on the same held-out tasks."""

_HELD_OUT_SHARE = 8
_TRAINING, _HELD_OUT = 0, 1
_MAX_ATTEMPTS = 1000


class TaskFamily(Protocol):
    """A pure function from seeds to tasks, and an example solver for pre-training a base model."""

    @property
    def name(self) -> str:
        """Its name in recipes, and the source of its tasks."""
        ...

    def task(self, seed_value: int) -> Task:
        """The task of a seed, which never changes: runs are resumed by seeds alone."""
        ...

    def worked_solution(self, task: Task, mistake_seed: int | None = None) -> str:
        """A completion in the required answer format, for a prompt that ends in `<think>`.

        With a mistake seed, one step has a plausible error and the final answer is wrong.
        """
        ...


FAMILIES: Mapping[str, Callable[[], TaskFamily]] = MappingProxyType(
    {"arithmetic": Arithmetic, "countdown": Countdown}
)


def family(name: str) -> TaskFamily:
    """The built-in family of a name. UsageError if there is none."""
    if name not in FAMILIES:
        raise UsageError(f"there is no task family {name!r}", hint=did_you_mean(name, FAMILIES))
    return FAMILIES[name]()


def is_held_out(problem: str) -> bool:
    """Whether a problem is excluded from training: one in eight, by blake2b of its text."""
    return hashlib.blake2b(problem.encode(), digest_size=8).digest()[0] % _HELD_OUT_SHARE == 0


def training_task(family: TaskFamily, run_seed: int, epoch: int, index: int) -> Task:
    """The training task at a position of an epoch."""
    return _first_task(family, False, run_seed, _TRAINING, epoch, index)


def held_out_task(family: TaskFamily, index: int) -> Task:
    """The held-out task at a position of an endless sequence, which may repeat tasks."""
    return _first_task(family, True, HELD_OUT_SEED, _HELD_OUT, index)


def held_out_tasks(family: TaskFamily, num_tasks: int) -> tuple[Task, ...]:
    """The first `num_tasks` distinct held-out tasks; a smaller number gives a prefix.

    DataError if the family does not have that many.
    """
    found: dict[str, Task] = {}
    for index in range(_MAX_ATTEMPTS + 20 * num_tasks):
        if len(found) == num_tasks:
            break
        task = held_out_task(family, index)
        found.setdefault(task.problem, task)
    if len(found) < num_tasks:
        raise DataError(
            f"the task family {family.name!r} has only {len(found)} distinct held-out tasks, not {num_tasks}",
            hint="evaluate on fewer tasks",
        )
    return tuple(found.values())


def _first_task(family: TaskFamily, held_out: bool, *coordinates: int) -> Task:
    """The first task at some coordinates that is held out, or that is not."""
    run_seed, *place = coordinates
    for attempt in range(_MAX_ATTEMPTS):
        task = family.task(seed(run_seed, Purpose.TASK, *place, attempt))
        if is_held_out(task.problem) == held_out:
            return task
    side = "held-out" if held_out else "training"
    raise DataError(
        f"the task family {family.name!r} gave no {side} task in {_MAX_ATTEMPTS} attempts",
        hint="the family is too small: widen the range of its numbers",
    )
