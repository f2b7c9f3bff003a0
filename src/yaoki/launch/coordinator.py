"""Shared state between the Ray driver and the workers: commands, messages, and the exit that ends the run.

A plain object that the launcher makes an actor, so calls are serialised.
"""

from dataclasses import dataclass

from yaoki.errors import PeerLostError, StopRequested
from yaoki.launch.process import describe_exit

MAX_IDLE_GROUPS = 5
"""Successive worker groups that may finish no step before the run ends: they all fail in the same way."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    rank: int
    code: int
    """Its exit code; negative for a signal."""
    error: str
    """The error at the end of its log; empty if there is none."""

    @property
    def is_failure(self) -> bool:
        """Neither finished nor stopped on request."""
        return self.code not in (0, StopRequested.exit_code)

    @property
    def is_final(self) -> bool:
        """Whether a restart would end in the same way; not for a kill, a lost peer or a traceback."""
        may_pass = self.code < 0 or self.code == PeerLostError.exit_code or self.error.startswith("Traceback")
        return not may_pass


class Coordinator:
    """Workers poll it for commands; the driver polls it for messages."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._ending: Ending | None = None
        self._messages: list[str] = []
        self._num_groups = 0
        self._num_idle = 0
        self._num_steps = -1

    def begin(self, size: int, num_steps: int) -> bool:
        """A group of `size` workers starts, with `num_steps` steps on disk. False for the first group."""
        self._num_groups += 1
        self._num_idle = 0 if num_steps > self._num_steps else self._num_idle + 1
        self._num_steps = max(num_steps, self._num_steps)
        if self._num_groups > 1:
            self._messages.append(f"starting again with {size} {'worker' if size == 1 else 'workers'}")
        return self._num_groups > 1

    def ask_to_stop(self) -> bool:
        """Request that all workers save and exit. Returns whether any was started yet."""
        self._is_stopping = True
        return self._num_groups > 0

    def commands(self) -> tuple[bool, bool]:
        """Whether to save and exit; whether to exit at once, because a worker has failed for good."""
        return self._is_stopping, self._ending is not None and self._ending.is_failure

    def ended(self, ending: Ending) -> bool:
        """A worker has ended. Returns whether the group should be restarted."""
        is_over = self.commands()[1]
        if not ending.is_final and not is_over and not self._is_stopping:
            self._messages.append(describe_exit(ending.rank, ending.code))
            if self._num_idle < MAX_IDLE_GROUPS:
                return True
        if self._is_stopping and not ending.is_final:
            ending = Ending(ending.rank, StopRequested.exit_code, "")
        if self._ending is None or (ending.is_failure and not is_over):
            self._ending = ending
        return False

    def ending(self) -> Ending | None:
        """The first final failure; without one, the first end of a worker."""
        return self._ending

    def messages(self, first: int) -> list[str]:
        """Messages for the user, from index `first` on."""
        return self._messages[first:]
