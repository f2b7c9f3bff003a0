"""Keeps the copy of a run at a URL up to date from a thread, while the run trains.

Knows when a pass is due and what becomes of its failures, not what a pass does.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Condition
from types import TracebackType

from yaoki.errors import YaokiError
from yaoki.mirror.push import Copier
from yaoki.mirror.remote import Remote
from yaoki.thread import SerialThread

_NUM_FAILURES = 5
"""So many passes in a row that fail are an error; up to then they are warnings."""
_FINISH_S = 600.0
"""How long the last pass may take when all went well."""
_LEAVE_S = 20.0
"""And when the process is wanted gone: what is not copied then is copied by the next attempt."""


class Mirror:
    """A context manager: in the block the copy is at most a pass and `every_s` behind the directory.

    Leaving it makes one more pass. If that cannot be done, it is an error, or a warning when another error
    is on its way. Nothing here touches the run.
    """

    def __init__(self, directory: Path, url: str, every_s: float, warn: Callable[[str], None]) -> None:
        """`warn` is called on the thread. Raises UsageError, see Remote."""
        self._remote = Remote(url)
        self._copier = Copier(directory, self._remote, warn)
        self._every_s = every_s
        self._warn = warn
        self._changed = Condition()
        self._num_asked = 0
        """Passes asked for: one counts if it begins after that."""
        self._num_answered = 0
        self._is_leaving = False
        self._failures: list[Exception] = []
        """Of the passes since the last one that went well."""
        self._worker: SerialThread | None = None
        self._loop: Future[None] = Future()

    def __enter__(self) -> "Mirror":
        """Raises RefusedError if the URL holds another run, or a later state of this one; YaokiError if it
        cannot be read, or holds nothing and cannot be written."""
        self._copier.check()
        self._worker = SerialThread("mirror")
        self._loop = self._worker.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync(_FINISH_S if error is None else _LEAVE_S)
        except YaokiError as behind:
            if error is None:
                raise
            self._warn(behind.message)
        finally:
            with self._changed:
                self._is_leaving = True
                self._changed.notify_all()
            if self._worker is not None:
                self._worker.close(0)
            self._remote.close()

    def poll(self) -> None:
        """Raise the YaokiError of the last pass if too many in a row have failed."""
        with self._changed:
            failures = list(self._failures)
        if self._loop.done():
            self._loop.result()  # a mistake in here
        if len(failures) >= _NUM_FAILURES:
            self._raise(failures[-1])

    def sync(self, timeout_s: float = _FINISH_S) -> None:
        """Return when all that is in the directory now is at the URL.

        Raises the YaokiError of the pass that should have done it, or one that it takes longer than this.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._num_asked += 1
            asked = self._num_asked
            self._changed.notify_all()
            while self._num_answered < asked and not self._loop.done():
                if not self._changed.wait(min(1.0, deadline_s - time.monotonic())):
                    self._require_time(deadline_s, timeout_s)
            failures = list(self._failures)
        if self._loop.done():
            self._loop.result()
        if failures:
            self._raise(failures[-1])

    def _run(self) -> None:
        """On the thread: passes, until somebody leaves."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_leaving or self._num_asked > self._num_answered, self._every_s
                )
                if self._is_leaving:
                    return
                asked = self._num_asked
            failure = self._pass()
            with self._changed:
                self._failures = [*self._failures, failure] if failure else []
                self._num_answered = asked
                self._changed.notify_all()

    def _pass(self) -> Exception | None:
        try:
            self._copier.copy()
        except (YaokiError, OSError) as error:
            message = error.message if isinstance(error, YaokiError) else str(error)
            self._warn(f"{self._remote.url} is behind, to be tried again: {message}")
            return error
        return None

    def _require_time(self, deadline_s: float, timeout_s: float) -> None:
        if time.monotonic() >= deadline_s:
            raise YaokiError(
                f"{self._remote.url} is not up to date after {timeout_s:g} s",
                hint="nothing is lost here: run the same command again, it copies what is missing",
            )

    def _raise(self, failure: Exception) -> None:
        message = failure.message if isinstance(failure, YaokiError) else str(failure)
        raise YaokiError(
            f"{self._remote.url} is behind the run: {message}",
            hint="see to the storage, then run the same command again: it copies what is missing. To go on "
            'without: run.storage=""',
        ) from failure
