"""What ranks that write or read one checkpoint together tell one another. No torch.

It knows nothing of how messages travel, nor of what a checkpoint is.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from yaoki.checkpoint.canonical import JSON, encode, parse
from yaoki.errors import CorruptCheckpointError, PeerLostError, StopRequested, YaokiError

T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits any more for what is being done."""


class Ranks(Protocol):
    """Messages between all ranks; all make the same calls, in the same order, from one thread each."""

    rank: int
    size: int

    def gather(self, message: bytes) -> list[bytes]:
        """What every rank says, in the order of the ranks."""
        ...


class OneRank:
    """A rank alone."""

    rank = 0
    size = 1

    def gather(self, message: bytes) -> list[bytes]:
        return [message]


def shared(ranks: Ranks, value: T) -> list[T]:
    """The values of all ranks, in their order; each of what JSON carries."""
    return [cast(T, parse(message)) for message in ranks.gather(encode(value))]


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do a piece of work on every rank; it has succeeded on all, or fails on all.

    Raises:
        what `work` raises here; or GivenUp, StopRequested, CorruptCheckpointError, as on the first rank where
            it failed, and PeerLostError for what else that one raised, with its number.
    """
    failure: Exception | None = None
    try:
        done = work()
    except PeerLostError:
        raise  # there is nobody to hear of it: to tell would be to wait once more
    except (YaokiError, OSError, GivenUp, StopRequested) as error:
        failure = error
    reports = shared(ranks, None if failure is None else _report(failure))
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report is not None:
            raise _error(rank, report)
    return done


def _report(failure: Exception) -> JSON:
    message = failure.message if isinstance(failure, YaokiError) else str(failure)
    hint = failure.hint if isinstance(failure, YaokiError) else None
    kinds = (GivenUp, StopRequested, CorruptCheckpointError)
    kind = next((kind.__name__ for kind in kinds if isinstance(failure, kind)), None)
    return {"kind": kind, "message": message, "hint": hint}


def _error(rank: int, report: JSON) -> Exception:
    match report:
        case {"kind": "StopRequested", "message": str(reason)}:
            return StopRequested(reason)
        case {"kind": "CorruptCheckpointError" | None as kind, "message": str(message), "hint": hint}:
            error = PeerLostError if kind is None else CorruptCheckpointError
            return error(f"worker {rank}: {message}", hint=hint if isinstance(hint, str) else None)
    return GivenUp()
