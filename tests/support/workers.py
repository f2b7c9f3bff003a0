"""An attempt of a run by several workers: forked processes, one per rank."""

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console as RichConsole

from tests.support.harness import log_path
from tests.support.ranks import on_ranks
from yaoki.config.schema import Config
from yaoki.errors import StopRequested
from yaoki.ranks.world import World
from yaoki.runs.directory import RunDirectory
from yaoki.train.console import Console
from yaoki.train.session import train

Patch = Callable[[World], None]


def worker(path: Path, config: Config, patch: Patch | None = None) -> Callable[[World], str]:
    """What each rank does: `patch` first, then train. Returns how that ended; rank 0 writes to path.log."""

    def work(world: World) -> str:
        if patch is not None:
            patch(world)
        output = log_path(path) if world.is_first else Path(os.devnull)
        with output.open("a") as log, Console(0, RichConsole(file=log, width=400)) as console:
            try:
                train(RunDirectory(path), config, console, world)
            except StopRequested as reason:
                return f"stopped: {reason}"
        return "finished"

    return work


def run_workers_to_end(path: Path, config: Config, num_workers: int) -> str:
    """Train with so many workers until all have finished; returns the log of rank 0."""
    assert on_ranks(num_workers, path.parent, worker(path, config)) == ["finished"] * num_workers
    return log_path(path).read_text("utf-8")
