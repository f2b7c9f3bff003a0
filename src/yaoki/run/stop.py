"""Being asked to stop: SIGTERM, SIGINT, SIGUSR1, or the attempt's time budget.

The first signal is a request, polled where work is long; a second one leaves at once. Knows nothing of
what is saved on the way out.
"""

import os
import signal
import time
from types import FrameType

from yaoki.errors import StopRequested

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """A context manager: signals are requests from entering until leaving."""

    def __init__(self, max_seconds: float) -> None:
        self._deadline = time.monotonic() + max_seconds if max_seconds else float("inf")
        self._max_seconds = max_seconds
        self._received: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def reason(self) -> str | None:
        """Why the run should stop, or None."""
        if self._received is None and time.monotonic() > self._deadline:
            return f"the time budget of {self._max_seconds:g} s is used up"
        return self._received

    def poll(self) -> None:
        """Raise StopRequested if the run should stop."""
        if self.reason is not None:
            raise StopRequested(self.reason)

    def poll_signals(self) -> None:
        """Raise StopRequested on a signal only, for work that a short time budget would never let end."""
        if self._received is not None:
            raise StopRequested(self._received)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + number)
        self._received = f"{signal.Signals(number).name} received"
