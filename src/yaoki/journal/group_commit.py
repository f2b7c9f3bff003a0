"""Group commit of rollouts: one background thread writes all pending batches together.

Appending does not block the caller; a failure in the thread is raised at the next call.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from yaoki.errors import YaokiError
from yaoki.types import Rollout

Batch = Sequence[Rollout]


class GroupCommit:
    """Not thread-safe: all calls come from one thread."""

    def __init__(
        self, write: Callable[[list[Batch]], None], *, flush_seconds: float, flush_rollouts: int
    ) -> None:
        """`write` makes batches durable; it runs in the background, one call at a time."""
        self._write = write
        self._flush_seconds = flush_seconds
        self._flush_rollouts = flush_rollouts
        self._changed = threading.Condition()
        self._pending: list[Batch] = []
        self._oldest_s = 0.0
        self._is_flushing = False
        self._commits: list[Future[None]] = []
        self._executor = ThreadPoolExecutor(1, "journal")

    def append(self, batch: Batch) -> None:
        """Queue a batch; it is written when enough are pending, the oldest is old enough, or at `sync`."""
        self.raise_failure()
        with self._changed:
            if not self._pending:  # the last commit has taken all pending batches, so a new one is needed
                self._oldest_s = time.monotonic()
                self._commits.append(self._executor.submit(self._commit))
            self._pending.append(batch)
            self._changed.notify()

    def sync(self) -> None:
        """Block until everything appended is durable; raises if it cannot be made durable."""
        self._flush(True)
        wait(self._commits)
        self._flush(False)
        self.raise_failure()

    def close(self) -> None:
        """Write what is pending and end the thread; raises nothing."""
        self._flush(True)
        self._executor.shutdown()

    def raise_failure(self) -> None:
        """Raise YaokiError if the thread has failed; once it has, every later call raises, too."""
        ended = [commit for commit in self._commits if commit.done()]
        failed = [commit for commit in ended if commit.exception() is not None]
        self._commits = failed + [commit for commit in self._commits if commit not in ended]
        if failed:
            error = failed[0].exception()
            raise YaokiError(
                f"rollouts could not be journaled: {error}",
                hint="check the disk, or free some space, then run the same command again: earlier rollouts "
                "are kept",
            ) from error

    def _flush(self, is_flushing: bool) -> None:
        with self._changed:
            self._is_flushing = is_flushing
            self._changed.notify()

    def _commit(self) -> None:
        with self._changed:
            left_s = self._oldest_s + self._flush_seconds - time.monotonic()
            self._changed.wait_for(self._is_due, timeout=left_s)
            batches, self._pending = self._pending, []
        self._write(batches)

    def _is_due(self) -> bool:
        return self._is_flushing or sum(map(len, self._pending)) >= self._flush_rollouts
