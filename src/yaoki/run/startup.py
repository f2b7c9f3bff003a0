"""How long an attempt takes from the start of its process to its first new rollout, by phase.

Measures; nothing depends on it.
"""

import os
import time
from pathlib import Path

PHASES = ("imports", "choose", "build", "load", "engine", "replay", "first_rollout")
"""In this order: the interpreter and its imports; lock and choice of the checkpoint; models, tokenizer, data
and verifier; reading the checkpoint; the engine's weights; steps and rollouts out of the journal; the first
micro-batch that is new."""


class Startup:
    """A stopwatch that is told when each phase has ended."""

    def __init__(self) -> None:
        self._last_s = _process_start_s()
        self.seconds: dict[str, float] = {}

    def ended(self, phase: str) -> None:
        """A phase, or another piece of it, has ended now; the next one begins."""
        now_s = time.time()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now_s - self._last_s, 3)
        self._last_s = now_s

    @property
    def is_over(self) -> bool:
        return PHASES[-1] in self.seconds


def _process_start_s() -> float:
    """Unix time at which this process was made; now where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text("utf-8").split()[0])
        return time.time() - uptime_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()
