"""Training tasks by (epoch, position): a shuffled dataset, or an endless generated family.

A source has no state, so a resume can continue at any position at no cost.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yaoki.data.generated import families
from yaoki.data.generated.families import TaskFamily
from yaoki.seeding import Purpose, permutation, seed
from yaoki.types import Task, tasks_digest

_NUM_SAMPLES_IN_DIGEST = 64


class TaskSource(Protocol):
    """Tasks by (epoch, position)."""

    @property
    def digest(self) -> str:
        """Changes when the task at any position changes; compared on resume."""
        ...

    @property
    def num_tasks(self) -> int:
        """Number of tasks in one epoch."""
        ...

    def training_task(self, epoch: int, position: int) -> Task:
        """The task at `position`, 0 <= position < num_tasks, of an epoch's shuffled order."""
        ...


class FileTasks:
    """A dataset, shuffled anew every epoch."""

    def __init__(self, tasks: Sequence[Task], digest: str, run_seed: int) -> None:
        self.digest = digest
        self._tasks = tasks
        self._run_seed = run_seed
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    @property
    def num_tasks(self) -> int:
        return len(self._tasks)

    def training_task(self, epoch: int, position: int) -> Task:
        task: Task = self._tasks[int(self._order(epoch)[position])]
        return task

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's permutation `[num_tasks]`; the last one is cached."""
        if self._cached is None or self._cached[0] != epoch:
            order = permutation(len(self._tasks), seed(self._run_seed, Purpose.DATA_ORDER, epoch))
            self._cached = epoch, order
        return self._cached[1]


class FamilyTasks:
    """Fresh tasks of a family at every position; the length of an epoch is arbitrary."""

    def __init__(self, family: TaskFamily, run_seed: int, tasks_per_epoch: int) -> None:
        samples = tasks_digest(family.task(seed_value) for seed_value in range(_NUM_SAMPLES_IN_DIGEST))
        self.digest = f"{family.name}:{tasks_per_epoch}:{samples}"
        self.num_tasks = tasks_per_epoch
        self._family = family
        self._run_seed = run_seed

    def training_task(self, epoch: int, position: int) -> Task:
        return families.training_task(self._family, self._run_seed, epoch, position)
