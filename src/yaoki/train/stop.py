"""Reasons to stop: SIGTERM, SIGINT, SIGUSR1, the attempt's time budget, a disk that is nearly full.

The first signal is a request, polled during long work; a second one ends the process at once.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from yaoki import fs
from yaoki.errors import StopRequested
from yaoki.ranks.world import World

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LARGEST_MARGIN = 0.5
"""Largest share of the time budget that is reserved for stopping, so that a short budget makes progress."""

_ASK_WORLD_EVERY_S = 0.2
"""Interval at which a rank polls whether another one was asked to stop, during independent work."""


def space_shortage(directory: Path, min_free_gb: float) -> str | None:
    """A message if the disk of `directory` has too little free space; None if it has enough."""
    free_gb = fs.num_free_bytes(directory) / 1e9
    if free_gb >= min_free_gb:
        return None
    return f"{free_gb:.3g} GB are free on the disk of {directory}, run.min_free_gb is {min_free_gb:g}"


class StopSignal:
    """A context manager that turns signals into requests, and the time budget into one more.

    The budget counts as used up early enough to save and exit: by the longest save and the longest interval
    between two polls so far. It does not count before the attempt has made durable progress (an update, or
    journaled rollouts), so that a run advances however short its budget is.
    """

    def __init__(self, max_seconds: float, world: World) -> None:
        self._max_seconds = max_seconds
        self._world = world
        self._asked_world_s = 0.0
        self._started_s = time.monotonic()
        self._polled_s: float | None = None
        self._longest_gap_s = 0.0
        self._longest_save_s = 0.0
        self._has_progressed = False
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
        if self._received is None and self._max_seconds and self._has_progressed:
            margin_s = min(self._longest_gap_s + self._longest_save_s, _LARGEST_MARGIN * self._max_seconds)
            if time.monotonic() - self._started_s > self._max_seconds - margin_s:
                return f"{margin_s:.3g} s of the time budget of {self._max_seconds:g} s are left"
        return self._received

    def saved(self, duration_s: float) -> None:
        """Note the duration of a save; the last one may take as long."""
        self._longest_save_s = max(self._longest_save_s, duration_s)

    def poll(self) -> None:
        """Raise StopRequested if the run should stop; other ranks raise it a little later."""
        now_s = self._note_gap()
        if now_s - self._asked_world_s > _ASK_WORLD_EVERY_S:
            self._asked_world_s = now_s
            self._received = self._received or self._world.asked_to_stop()
        if self.reason is not None:
            self._world.ask_to_stop(self.reason)
            raise StopRequested(self.reason)

    def poll_together(self) -> None:
        """Raise StopRequested on all ranks if any should stop; a collective."""
        self._note_gap()
        if (reason := self._world.loop.any_reason(self.reason)) is not None:
            raise StopRequested(reason)

    def ask(self, reason: str) -> None:
        """Request a stop at the next poll."""
        self._received = self._received or reason

    def made_progress(self) -> None:
        """The attempt has made durable progress: from now on the time budget counts."""
        self._has_progressed = True

    def poll_signals(self) -> None:
        """Raise StopRequested on a signal only, for work that a short time budget would never allow to
        end."""
        if self._received is not None:
            raise StopRequested(self._received)

    def _note_gap(self) -> float:
        now_s = time.monotonic()
        if self._polled_s is not None:
            self._longest_gap_s = max(self._longest_gap_s, now_s - self._polled_s)
        self._polled_s = now_s
        return now_s

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + number)
        self._received = f"{signal.Signals(number).name} received"
