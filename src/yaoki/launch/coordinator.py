"""What the driver of a run and the workers of all its groups tell one another, and when it is over.

A plain object; the launcher makes it one that can be called from other machines. It knows nothing of how
workers are started.
"""

from dataclasses import dataclass

from yaoki.errors import PeerLostError, StopRequested
from yaoki.launch.process import describe_end

MAX_IDLE_GROUPS = 5
"""So many groups after one another that finish no step, and it is over: they all run into the same thing."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    rank: int
    code: int
    """Its exit code; negative for a signal."""
    words: str
    """The error that it showed, or nothing."""

    @property
    def is_failure(self) -> bool:
        """Neither finished nor asked to stop."""
        return self.code not in (0, StopRequested.exit_code)

    @property
    def is_final(self) -> bool:
        """Whether it would end in the same way again: so do all but deaths, the loss of another worker, and
        what nobody has foreseen."""
        may_not = self.code < 0 or self.code == PeerLostError.exit_code or self.words.startswith("Traceback")
        return not may_not


class Coordinator:
    """Calls come one after another; workers ask for their orders again and again."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._ending: Ending | None = None
        self._news: list[str] = []
        self._num_groups = 0
        self._num_idle = 0
        self._num_steps = -1

    def begin(self, size: int, num_steps: int) -> bool:
        """A group of so many workers begins, with so many steps on disk. False if it is the first."""
        self._num_groups += 1
        self._num_idle = 0 if num_steps > self._num_steps else self._num_idle + 1
        self._num_steps = max(num_steps, self._num_steps)
        if self._num_groups > 1:
            self._news.append(f"starting again with {size} {'worker' if size == 1 else 'workers'}")
        return self._num_groups > 1

    def ask_to_stop(self) -> bool:
        """All workers should save and leave. Returns whether any was ever started."""
        self._is_stopping = True
        return self._num_groups > 0

    def commands(self) -> tuple[bool, bool]:
        """Whether to save and leave; whether it is over, because a worker has failed for good."""
        return self._is_stopping, self._ending is not None and self._ending.is_failure

    def ended(self, ending: Ending) -> bool:
        """A worker has ended. Returns whether the group should be started again."""
        is_over = self.commands()[1]
        if not ending.is_final and not is_over and not self._is_stopping:
            self._news.append(describe_end(ending.rank, ending.code))
            if self._num_idle < MAX_IDLE_GROUPS:
                return True
        if self._is_stopping and not ending.is_final:
            ending = Ending(ending.rank, StopRequested.exit_code, "")
        if self._ending is None or (ending.is_failure and not is_over):
            self._ending = ending
        return False

    def ending(self) -> Ending | None:
        """The first failure for good; else how the first worker that has ended did."""
        return self._ending

    def messages(self, begin: int) -> list[str]:
        """What has happened, from that line on."""
        return self._news[begin:]
