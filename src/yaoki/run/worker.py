"""One worker of a run: finds its place among the others and trains. Knows nothing of who started it."""

import os

from yaoki.config.schema import Config
from yaoki.run.attempt import Outcome
from yaoki.run.console import Console
from yaoki.run.directory import RunDirectory
from yaoki.run.session import train, world_of


def train_worker(directory: RunDirectory, config: Config) -> Outcome | None:
    """Train with all workers that the environment variables speak of; the outcome on the first one only.

    Raises what `train` raises, and PeerLostError when another worker is gone.
    """
    with world_of(config, os.environ) as world:
        with Console(config.run.show_samples_every, is_quiet=not world.is_first) as console:
            outcome = train(directory, config, console, world)
        return outcome if world.is_first else None
