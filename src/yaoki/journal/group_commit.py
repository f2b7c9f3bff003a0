"""Rollouts on their way to the disk: one background thread writes all that wait, together.

Handing over costs the main path nothing; a failure in the thread is raised there at the next call. How
things are written is not known here.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from yaoki.errors import YaokiError
from yaoki.types import Rollout

Batch = Sequence[Rollout]


class GroupCommit:
    """Used from one thread, besides its own."""

    def __init__(
        self, write: Callable[[list[Batch]], None], *, flush_seconds: float, flush_rollouts: int
    ) -> None:
        """`write` makes what it is given durable; it runs in the background, one call at a time."""
        self._write = write
        self._flush_seconds = flush_seconds
        self._flush_rollouts = flush_rollouts
        self._changed = threading.Condition()
        self._waiting: list[Batch] = []
        self._oldest_s = 0.0
        self._in_a_hurry = False
        self._commits: list[Future[None]] = []
        self._executor = ThreadPoolExecutor(1, "journal")

    def append(self, batch: Batch) -> None:
        """Hand over; written when enough wait, the oldest has waited long enough, or `sync` asks."""
        self.raise_failure()
        with self._changed:
            if not self._waiting:  # the last commit has taken all there was, so a new one is needed
                self._oldest_s = time.monotonic()
                self._commits.append(self._executor.submit(self._commit))
            self._waiting.append(batch)
            self._changed.notify()

    def sync(self) -> None:
        """Return when all that was appended is durable; raises if it cannot be made so."""
        self._hurry(True)
        wait(self._commits)
        self._hurry(False)
        self.raise_failure()

    def close(self) -> None:
        """Write what still waits and end the thread; raises nothing."""
        self._hurry(True)
        self._executor.shutdown()

    def raise_failure(self) -> None:
        """YaokiError if the thread has failed, now and ever after."""
        ended = [commit for commit in self._commits if commit.done()]
        failed = [commit for commit in ended if commit.exception() is not None]
        self._commits = failed + [commit for commit in self._commits if commit not in ended]
        if failed:
            error = failed[0].exception()
            raise YaokiError(
                f"rollouts could not be journaled: {error}",
                hint="see to the disk, or make room on it; then the same command goes on: what was journaled "
                "before is kept",
            ) from error

    def _hurry(self, in_a_hurry: bool) -> None:
        with self._changed:
            self._in_a_hurry = in_a_hurry
            self._changed.notify()

    def _commit(self) -> None:
        with self._changed:
            left_s = self._oldest_s + self._flush_seconds - time.monotonic()
            self._changed.wait_for(self._is_due, timeout=left_s)
            batches, self._waiting = self._waiting, []
        self._write(batches)

    def _is_due(self) -> bool:
        return self._in_a_hurry or sum(map(len, self._waiting)) >= self._flush_rollouts
