"""A background thread for work that waits for the disk or the network. No torch.

Not `ThreadPoolExecutor`: at exit Python waits for its threads, and one may hang in a system call.
"""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class SerialThread:
    """One daemon thread that runs submitted work in order."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` after everything submitted before; the future gets its result or error."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def close(self, timeout_s: float | None = None) -> None:
        """Wait until all submitted work is done, at most `timeout_s`. Nothing may be submitted afterwards."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                future.set_exception(error)
            del item, future, work  # so that their memory is freed while the thread waits
