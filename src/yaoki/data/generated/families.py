"""Generated task families: infinite, seeded, with a held-out side that training can never meet.

Which side a problem is on is decided by a hash of its text alone, so training and held-out tasks are
disjoint whatever the seeds. How a family makes its problems is its own affair.
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
"""The same for every run, so that runs with different seeds are compared on the same held-out tasks."""

_HELD_OUT_SHARE = 8
_TRAINING, _HELD_OUT = 0, 1
_MAX_ATTEMPTS = 1000


class TaskFamily(Protocol):
    """A pure function from seeds to tasks, and an example solver for pre-training a base model."""

    @property
    def name(self) -> str:
        """What recipes call it; also the source of its tasks."""
        ...

    def task(self, seed_value: int) -> Task:
        """The task of this seed; the same one for ever, because runs are resumed by seeds alone."""
        ...

    def worked_solution(self, task: Task, mistake_seed: int | None = None) -> str:
        """A completion in the required answer form, to follow a prompt that ends in `<think>`.

        With a mistake seed, one step carries a plausible error and the final answer is wrong.
        """
        ...


FAMILIES: Mapping[str, Callable[[], TaskFamily]] = MappingProxyType(
    {"arithmetic": Arithmetic, "countdown": Countdown}
)


def family(name: str) -> TaskFamily:
    """The built-in family of this name. UsageError if there is none."""
    if name not in FAMILIES:
        raise UsageError(f"there is no task family {name!r}", hint=did_you_mean(name, FAMILIES))
    return FAMILIES[name]()


def is_held_out(problem: str) -> bool:
    """Whether this problem is kept from training: one in eight, by blake2b of its text."""
    return hashlib.blake2b(problem.encode(), digest_size=8).digest()[0] % _HELD_OUT_SHARE == 0


def training_task(family: TaskFamily, run_seed: int, epoch: int, index: int) -> Task:
    """The training task at one place of one epoch."""
    return _on_side(family, False, run_seed, _TRAINING, epoch, index)


def held_out_task(family: TaskFamily, index: int, held_out_seed: int = HELD_OUT_SEED) -> Task:
    """The held-out task at one place of an endless row, in which a task may come more than once."""
    return _on_side(family, True, held_out_seed, _HELD_OUT, index)


def held_out_tasks(
    family: TaskFamily, num_tasks: int, held_out_seed: int = HELD_OUT_SEED
) -> tuple[Task, ...]:
    """The first `num_tasks` different held-out tasks; fewer of them are a prefix of more.

    DataError if the family does not have so many.
    """
    found: dict[str, Task] = {}
    for index in range(_MAX_ATTEMPTS + 20 * num_tasks):
        if len(found) == num_tasks:
            break
        task = held_out_task(family, index, held_out_seed)
        found.setdefault(task.problem, task)
    if len(found) < num_tasks:
        raise DataError(
            f"the task family {family.name!r} gave only {len(found)} different held-out tasks "
            f"of the {num_tasks} that were asked for",
            hint="evaluate on fewer tasks",
        )
    return tuple(found.values())


def _on_side(family: TaskFamily, held_out: bool, *coordinates: int) -> Task:
    """The first task of these coordinates that lies on the wanted side."""
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
