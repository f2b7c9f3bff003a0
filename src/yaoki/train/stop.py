"""Reasons to stop: SIGTERM, SIGINT, SIGUSR1, the attempt's time budget, a disk that is nearly full.

The first signal is a request, polled wherever work is long; a second one leaves at once. Knows nothing of
what is saved on the way out.
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
"""Share of the time budget that is kept free for stopping, at most: a short budget must get somewhere."""

_ASK_WORLD_EVERY_S = 0.2
"""How often a rank looks whether another one was asked to stop, while each works for itself."""


def space_shortage(directory: Path, min_free_gb: float) -> str | None:
    """In words, that the disk of `directory` has less free space than it should; None if it has enough."""
    free_gb = fs.num_free_bytes(directory) / 1e9
    if free_gb >= min_free_gb:
        return None
    return f"{free_gb:.3g} GB are free on the disk of {directory}, run.min_free_gb is {min_free_gb:g}"


class StopSignal:
    """A context manager: signals are requests from entering until leaving.

    The budget is called used up early enough to save and leave: by the longest save and the longest time
    between two polls that were seen so far. It is not looked at before the attempt has done something that
    lasts (an update, or rollouts for the journal): however short it is, a run gets on.
    """

    def __init__(self, max_seconds: float, world: World) -> None:
        self._max_seconds = max_seconds
        self._world = world
        self._asked_world_s = 0.0
        self._started_s = time.monotonic()
        self._polled_s: float | None = None
        self._longest_gap_s = 0.0
        self._longest_save_s = 0.0
        self._has_got_on = False
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
        if self._received is None and self._max_seconds and self._has_got_on:
            margin_s = min(self._longest_gap_s + self._longest_save_s, _LARGEST_MARGIN * self._max_seconds)
            if time.monotonic() - self._started_s > self._max_seconds - margin_s:
                return (
                    f"of the time budget of {self._max_seconds:g} s only {margin_s:.3g} s to leave are left"
                )
        return self._received

    def saved(self, duration_s: float) -> None:
        """A save took so long; the last one will take as long again."""
        self._longest_save_s = max(self._longest_save_s, duration_s)

    def poll(self) -> None:
        """Raise StopRequested if the run should stop; other ranks may hear of it a little later."""
        now_s = self._note_gap()
        if now_s - self._asked_world_s > _ASK_WORLD_EVERY_S:
            self._asked_world_s = now_s
            self._received = self._received or self._world.asked_to_stop()
        if self.reason is not None:
            self._world.ask_to_stop(self.reason)
            raise StopRequested(self.reason)

    def poll_together(self) -> None:
        """Raise StopRequested on all ranks if any should stop; for work that the ranks do together."""
        self._note_gap()
        if (reason := self._world.loop.any_reason(self.reason)) is not None:
            raise StopRequested(reason)

    def ask(self, reason: str) -> None:
        """Stop at the next poll."""
        self._received = self._received or reason

    def made_progress(self) -> None:
        """This attempt has done something that lasts; from now on the time budget counts."""
        self._has_got_on = True

    def poll_signals(self) -> None:
        """Raise StopRequested on a signal only, for work that a short time budget would never let end."""
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
