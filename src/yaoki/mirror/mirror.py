"""Keeps the copy of a run at a URL up to date from a background thread while the run trains."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from yaoki.errors import YaokiError
from yaoki.mirror.push import Copier
from yaoki.mirror.remote import Remote
from yaoki.thread import SerialThread

_MAX_FAILURES = 5
"""This many failed passes in a row are an error; fewer are warnings."""
_FINISH_TIMEOUT_S = 600.0
"""For the last pass of a run that ended well."""
_STOP_TIMEOUT_S = 20.0
"""For the last pass of a run that stops or fails; the next attempt copies what is missing then."""

Failure = YaokiError | OSError | None
"""Why a pass failed; None if it succeeded."""


class Mirror:
    """A context manager: within the block the copy lags behind by `every_s` and the duration of a pass.

    Leaving the block makes one more pass. If that fails, it is an error, or a warning when another error is
    already being raised. The run itself is never changed.
    """

    def __init__(self, directory: Path, url: str, every_s: float, warn: Callable[[str], None]) -> None:
        """`warn` is called on the thread. Raises UsageError, see Remote."""
        self._url = url.rstrip("/")
        self._copier = Copier(directory, Remote(url), warn)
        self._every_s = every_s
        self._warn = warn
        self._requests: SimpleQueue[Future[Failure] | None] = SimpleQueue()
        """Each asks for a pass that starts from now on; None ends the thread."""
        self._failures: list[YaokiError | OSError] = []
        """Since the last successful pass."""
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
            self.sync(_FINISH_TIMEOUT_S if error is None else _STOP_TIMEOUT_S)
        except YaokiError as behind:
            if error is None:
                raise
            self._warn(behind.message)
        finally:
            self._requests.put(None)
            if self._worker is not None:
                self._worker.close(0)

    def poll(self) -> None:
        """Raise the error of the last pass if too many in a row have failed."""
        if self._loop.done():
            self._loop.result()  # a bug: passes catch what a store may raise
        if len(self._failures) >= _MAX_FAILURES:
            raise self._behind(self._failures[-1])

    def sync(self, timeout_s: float = _FINISH_TIMEOUT_S) -> None:
        """Return when the current content of the directory is at the URL.

        Raises YaokiError if the pass that copies it fails or takes longer than the timeout.
        """
        request: Future[Failure] = Future()
        self._requests.put(request)
        either: list[Future[Any]] = [request, self._loop]
        done, _ = wait(either, timeout_s, FIRST_COMPLETED)
        if not done:
            raise YaokiError(
                f"{self._url} is not up to date after {timeout_s:g} s",
                hint="nothing is lost: run the same command again, it copies what is missing",
            )
        if self._loop.done():
            self._loop.result()
        if (failure := request.result()) is not None:
            raise self._behind(failure)

    def _run(self) -> None:
        """On the thread: a pass per request, and every `every_s` without one."""
        while True:
            try:
                request = self._requests.get(timeout=self._every_s)
            except Empty:
                request = Future()
            if request is None:
                return
            failure = self._pass()
            self._failures = [] if failure is None else [*self._failures, failure]
            request.set_result(failure)

    def _pass(self) -> Failure:
        try:
            self._copier.copy()
        except (YaokiError, OSError) as error:
            self._warn(f"{self._url} is behind, the next pass tries again: {_message(error)}")
            return error
        return None

    def _behind(self, failure: YaokiError | OSError) -> YaokiError:
        error = YaokiError(
            f"{self._url} is behind the run: {_message(failure)}",
            hint="check the storage, then run the same command again: it copies what is missing. To continue "
            'without a copy: run.storage=""',
        )
        error.__cause__ = failure
        return error


def _message(error: YaokiError | OSError) -> str:
    return error.message if isinstance(error, YaokiError) else str(error)
