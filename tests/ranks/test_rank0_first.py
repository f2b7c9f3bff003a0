"""The first rank may work for longer than collectives wait, as long as it is alive."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.ranks import Failure, on_ranks, outcomes
from yaoki.errors import StopRequested, UsageError
from yaoki.ranks.agree import rank0_first, run_on_all
from yaoki.ranks.world import World, alone

TIMEOUT_S = 3.0


def test_the_others_wait_for_longer_than_a_collective_would(tmp_path: Path) -> None:
    def work(world: World) -> tuple[list[int | None], bytes]:
        def long() -> int:
            time.sleep(1.7 * TIMEOUT_S)
            return 7

        found = [rank0_first(world, long), rank0_first(world, lambda: 8)]
        return found, b"".join(world.loop.gather(b"%d" % world.rank))

    first, *others = on_ranks(3, tmp_path, work, timeout_s=TIMEOUT_S)
    assert first == ([7, 8], b"012")
    assert others == [([None, None], b"012")] * 2


def test_a_first_rank_that_is_gone_is_noticed(tmp_path: Path) -> None:
    def work(world: World) -> None:
        rank0_first(world, lambda: os.kill(os.getpid(), signal.SIGKILL))

    found = outcomes(2, tmp_path, work, timeout_s=TIMEOUT_S)
    assert 0 not in found
    assert isinstance(found[1], Failure)
    assert "PeerLostError: worker 0, for which this one waits, has sent no heartbeat for" in found[1].text


@pytest.mark.parametrize(
    ("error", "on_others"),
    [(UsageError("no"), "PeerLostError: worker 0: no"), (StopRequested("no"), "StopRequested: no")],
)
def test_what_it_raises_reaches_all(error: Exception, on_others: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    def work(world: World) -> None:
        run_on_all(world.loop, lambda: rank0_first(world, fail))

    found = outcomes(2, tmp_path, work, timeout_s=TIMEOUT_S)
    assert type(error).__name__ + ": no" in found[0].text
    assert on_others in found[1].text


def test_one_rank_just_works() -> None:
    assert rank0_first(alone(), lambda: 3) == 3
