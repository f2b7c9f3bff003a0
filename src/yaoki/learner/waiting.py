"""Long work of the first rank, such as downloads, for which the others wait as long as it takes.

A collective would end such a wait at its timeout. Here the first rank tells the others, again and again, that
it is alive. Knows nothing of the work.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from torch._C._distributed_c10d import Store

from yaoki.errors import PeerLostError
from yaoki.learner.world import World, peers_expected

T = TypeVar("T")

_BEATS = "yaoki/beats"
_DONE = "yaoki/done"
_BEAT_S = 1.0
_LONGEST_SILENCE_S = 60.0


def while_first_works(world: World, work: Callable[[], T]) -> T | None:
    """`work` on the first rank, which returns or raises what it does; the others wait for the end of it.

    All ranks call this together, on the thread that trains. PeerLostError on the others if the first one has
    been silent for a minute, or for the timeout of its collectives if that is less.
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
        while not ended.wait(_BEAT_S):
            store.add(_BEATS, 1)

    thread = Thread(target=beat, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.add(_DONE, 1)


def _wait(store: Store, turn: int, longest_silence_s: float) -> None:
    last, heard_at = -1, time.monotonic()
    while store.add(_DONE, 0) < turn:
        if (beats := store.add(_BEATS, 0)) != last:
            last, heard_at = beats, time.monotonic()
        silence_s = time.monotonic() - heard_at
        if silence_s > longest_silence_s:
            raise PeerLostError(
                f"worker 0, for whose work this one waits, has not been heard of for {silence_s:.0f} s",
                hint="see what it was doing, then start the run again: it goes on from what is on disk",
            )
        time.sleep(min(0.1, longest_silence_s / 10))
