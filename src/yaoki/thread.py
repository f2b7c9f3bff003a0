"""A thread that does pieces of work in order, so that one waits for the disk while another goes on. No torch.

It knows nothing of the work.
"""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class SerialThread:
    """One thread. It never keeps the process alive: a disk that hangs must not make an error hang."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done after all that was submitted before; its result or error is in the future."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def close(self, timeout_s: float | None = None) -> None:
        """Wait until all that was submitted is done, or for so long; submit nothing after it."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the work gets it
                future.set_exception(error)
            del item, future, work  # or what they hold would live until there is more to do
