"""One worker of a run: finds its place among the others and trains. Knows nothing of who started it."""

import os

from yaoki.config.schema import Config
from yaoki.learner.world import joined
from yaoki.run.attempt import Outcome
from yaoki.run.build import device_type
from yaoki.run.console import Console
from yaoki.run.directory import RunDirectory
from yaoki.run.session import train


def train_worker(directory: RunDirectory, config: Config) -> Outcome | None:
    """Train with all workers that the environment variables speak of; the outcome on the first one only.

    Raises what `train` raises, and PeerLostError when another worker is gone.
    """
    needs_group = config.train.precision != "float32"
    timeout_s = config.run.peer_timeout_s
    with joined(os.environ, device_type(config), timeout_s, always_group=needs_group) as world:
        with Console(config.run.show_samples_every, is_quiet=not world.is_first) as console:
            outcome = train(directory, config, console, world)
        return outcome if world.is_first else None
