"""Agreement between ranks: all succeed or all fail, all stop or none does, rank 0 first."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar, cast

from torch._C._distributed_c10d import Store

from yaoki.errors import CorruptCheckpointError, PeerLostError, StopRequested, YaokiError
from yaoki.ranks.world import Channel, World, peers_expected
from yaoki.strict_json import JSON, encode, parse

T = TypeVar("T")


class Cancelled(Exception):
    """The work is no longer needed and was given up."""


def all_gather_json(ranks: Channel, value: T) -> list[T]:
    """All-gather of JSON values, in the order of the ranks."""
    return [cast(T, parse(message)) for message in ranks.gather(encode(value))]


def run_on_all(ranks: Channel, work: Callable[[], T]) -> T:
    """Do a piece of work on every rank; it succeeds on all, or fails on all.

    Raises: what `work` raises on this rank; else what it raised on the first rank where it failed: Cancelled,
    StopRequested and CorruptCheckpointError as they are, any other error as PeerLostError with the rank's
    number.
    """
    failure: Exception | None = None
    try:
        done = work()
    except PeerLostError:
        raise  # reporting it to the lost peer would wait for a second timeout
    except (YaokiError, OSError, Cancelled, StopRequested) as error:
        failure = error
    reports = all_gather_json(ranks, None if failure is None else _report(failure))
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report is not None:
            raise _error(rank, report)
    return done


def _report(failure: Exception) -> JSON:
    message = failure.message if isinstance(failure, YaokiError) else str(failure)
    hint = failure.hint if isinstance(failure, YaokiError) else None
    kinds = (Cancelled, StopRequested, CorruptCheckpointError)
    kind = next((kind.__name__ for kind in kinds if isinstance(failure, kind)), None)
    if isinstance(failure, CorruptCheckpointError):
        path = None if failure.path is None else str(failure.path)
        return {"kind": kind, "message": failure.reason, "path": path, "hint": hint}
    return {"kind": kind, "message": message, "hint": hint}


def _error(rank: int, report: JSON) -> Exception:
    match report:
        case {"kind": "StopRequested", "message": str(reason)}:
            return StopRequested(reason)
        case {"kind": None, "message": str(message), "hint": str() | None as hint}:
            return PeerLostError(f"worker {rank}: {message}", hint=hint)
        case {"message": str(reason), "path": str() | None as path, "hint": str() | None as hint}:
            return CorruptCheckpointError(f"worker {rank}: {reason}", path=path, hint=hint)
    return Cancelled()


_HEARTBEATS = "yaoki/beats"
_DONE = "yaoki/done"
_HEARTBEAT_S = 1.0
_LONGEST_SILENCE_S = 60.0


def rank0_first(world: World, work: Callable[[], T]) -> T | None:
    """Do `work` on rank 0, which returns or raises what it does; the others wait for its end and return None.

    For work of any length, such as downloads, which would exceed the timeout of a collective: rank 0 sends
    heartbeats. All ranks call this together, on the thread that trains. PeerLostError on the others after a
    minute without a heartbeat, or after the timeout of collectives if that is less.
    """
    turn = next(world.turns)
    if world.store is None:
        return work()
    if world.is_first:
        with _beating(world.store):
            return work()
    with peers_expected():
        _wait(world.store, turn, min(_LONGEST_SILENCE_S, world.timeout_s))
    return None


@contextmanager
def _beating(store: Store) -> Iterator[None]:
    ended = Event()

    def beat() -> None:
        while not ended.wait(_HEARTBEAT_S):
            store.add(_HEARTBEATS, 1)

    thread = Thread(target=beat, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.add(_DONE, 1)


def _wait(store: Store, turn: int, longest_silence_s: float) -> None:
    last, beat_at_s = -1, time.monotonic()
    while store.add(_DONE, 0) < turn:
        if (beats := store.add(_HEARTBEATS, 0)) != last:
            last, beat_at_s = beats, time.monotonic()
        silence_s = time.monotonic() - beat_at_s
        if silence_s > longest_silence_s:
            raise PeerLostError(
                f"worker 0, for which this one waits, has sent no heartbeat for {silence_s:.0f} s",
                hint="see its log, then start the run again: it continues from what is on disk",
            )
        time.sleep(min(0.1, longest_silence_s / 10))


def stop_together(work: Callable[[], T], any_reason: Callable[[str | None], str | None]) -> T:
    """Do `work` on every rank; StopRequested on all if it was stopped on any.

    any_reason: exchanges the reason of this rank, or None, for one that some rank has.
    """
    try:
        done, own_reason = work(), None
    except StopRequested as stop:
        own_reason = str(stop)
    if (reason := any_reason(own_reason)) is not None:
        raise StopRequested(reason)
    return done
