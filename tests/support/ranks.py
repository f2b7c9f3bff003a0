"""Runs a function on several ranks: real processes, forked, that meet at a file."""

import faulthandler
import multiprocessing
import os
import pickle
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yaoki.ranks.environment import STORE_FILE
from yaoki.ranks.world import World, joined

_CONTEXT = multiprocessing.get_context("fork")
PATIENCE_S = 300.0
"""A busy machine is slow; a test that hangs must end all the same."""


def on_ranks(
    size: int, directory: Path, work: Callable[[World], Any], *, timeout_s: float = 120
) -> list[Any]:
    """What `work` returns on each rank. AssertionError with the traceback if one fails."""
    results = [result for _, result in sorted(outcomes(size, directory, work, timeout_s=timeout_s).items())]
    for rank, result in enumerate(results):
        assert not isinstance(result, Failure), f"rank {rank}:\n{result.text}"
    assert len(results) == size
    return results


class Failure:
    """A rank ended with this."""

    def __init__(self, text: str) -> None:
        self.text = text


def outcomes(
    size: int, directory: Path, work: Callable[[World], Any], *, timeout_s: float = 120
) -> dict[int, Any]:
    """By rank, what `work` returned or the Failure; nothing for a rank that was killed."""
    meeting = directory / f"ranks-{uuid.uuid4().hex}"
    meeting.mkdir()
    ranks = [
        _CONTEXT.Process(target=_rank, args=(rank, size, meeting, work, timeout_s), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + PATIENCE_S
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    stacks = [f"rank {rank}:\n{(meeting / f'{rank}.stacks').read_text()}" for rank in hanging]
    for process in ranks:
        process.kill()
    assert not hanging, "\n".join([f"ranks {hanging} never came back", *stacks])
    answers = {rank: meeting / str(rank) for rank in range(size)}
    return {rank: pickle.loads(path.read_bytes()) for rank, path in answers.items() if path.exists()}


def _rank(rank: int, size: int, meeting: Path, work: Callable[[World], Any], timeout_s: float) -> None:
    torch.set_num_threads(1)
    stacks = (meeting / f"{rank}.stacks").open("w")
    faulthandler.dump_traceback_later(0.9 * PATIENCE_S, file=stacks)
    store = str(meeting / "store")
    environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), STORE_FILE: store}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        with joined(environment, "cpu", timeout_s, always_group=True) as world:
            result = work(world)
    except BaseException:  # noqa: BLE001 - the parent shows it
        result = Failure(traceback.format_exc())
    (meeting / str(rank)).write_bytes(pickle.dumps(result))
    os._exit(0)  # what the parent has imported and started is no concern of this process
