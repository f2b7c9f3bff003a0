"""Training as a command: lock, choose, compare, and one attempt between its two lines in the record."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

from yaoki import fs
from yaoki.checkpoint.catalog import Choice, Refusal, ValidCheckpoint
from yaoki.checkpoint.verify import read_manifest
from yaoki.config.compat import require_resumable
from yaoki.config.schema import Config
from yaoki.errors import RefusedError, StopRequested, YaokiError
from yaoki.mirror.mirror import Mirror
from yaoki.mirror.pull import fetch
from yaoki.models.determinism import configure
from yaoki.ranks.agree import all_gather_json, rank0_first, run_on_all
from yaoki.ranks.world import World, joined
from yaoki.runs.directory import RunDirectory
from yaoki.train.attempt import Attempt, Outcome
from yaoki.train.console import Console
from yaoki.train.networks import device_type
from yaoki.train.resume import DamagedCheckpoint
from yaoki.train.step_metrics import Startup
from yaoki.train.stop import StopSignal, space_shortage
from yaoki.train.trackers import FollowedDirectory


def world_of(config: Config, environment: Mapping[str, str]) -> AbstractContextManager[World]:
    """The world that a launcher's environment variables describe, as the config needs it; see `joined`."""
    needs_group = config.train.precision != "float32"  # FSDP2 computes in another precision, for one rank too
    timeout_s = config.run.peer_timeout_s
    return joined(environment, device_type(config), timeout_s, always_group=needs_group)


def train(
    directory: RunDirectory,
    config: Config,
    console: Console,
    world: World | None = None,
    *,
    replay_only: bool = False,
) -> Outcome:
    """Start the run of `directory`, or resume what it holds, and train until train.steps.

    With `replay_only` nothing is sampled: every step comes out of the journal, or it is an error.

    Raises StopRequested (saved, to be resumed) and any YaokiError; never starts afresh where a
    checkpoint was meant to be. With several ranks all call this; the first one looks after the directory.
    Without a `world` there is one rank.
    """
    startup = Startup()
    startup.ended("imports")
    with ExitStack() as stack:
        world = stack.enter_context(world_of(config, {})) if world is None else world
        if not world.is_first:
            directory = FollowedDirectory(directory.path)
        stack.enter_context(directory.lock() if world.is_first else nullcontext())
        session = _Session(directory, config, console, world, startup, replay_only, stack)
        open_first = partial(rank0_first, world, session.open)  # it may have to be fetched
        check_storage = run_on_all(world.loop, open_first) or _nothing_to_check
        choice = session.choose(read_all=False)
        if session.is_finished(choice):
            choice = session.choose()  # nothing will be restored, so nothing else reads it
        if session.is_finished(choice):
            summary = directory.summary()
            assert summary is not None
            return Outcome(directory, summary["steps"], summary, already_finished=True)
        configure(deterministic=config.run.deterministic, num_threads=config.run.num_threads)
        startup.ended("choose")
        return session.attempt(choice, check_storage)


@dataclass(frozen=True, slots=True)
class _Session:
    """One process's part in an attempt, from the lock to the end."""

    directory: RunDirectory
    config: Config
    console: Console
    world: World
    startup: Startup
    replay_only: bool
    stack: ExitStack
    """Left when the attempt is over, before the lock is let go."""

    def open(self) -> Callable[[], None]:
        """On the first rank: make a new run, or make sure that this config may go on with what is there.

        Returns what raises the error if the copy of the run at `run.storage` cannot be kept up to date.
        """
        directory, storage = self.directory, self.config.run.storage
        if storage and fetch(storage, directory.path, self.console.warn):
            self.console.note(f"fetched from {storage}")
        if not directory.exists:
            directory.create(self.config)
        elif not directory.has_begun:
            directory.begin_anew(self.config)
        else:
            for change in require_resumable(directory.stored_config(), self.config):
                self.console.note(f"changed since the last attempt: {change}")
        if directory.checkpoints.is_dir():
            fs.fsync_directory(directory.checkpoints)  # what is chosen must still be there after a power cut
        if not storage:
            return _nothing_to_check
        every_s = self.config.run.storage_every_s
        return self.stack.enter_context(Mirror(directory.path, storage, every_s, self.console.warn)).poll

    def choose(self, *, read_all: bool = True, refused: Sequence[Refusal] = ()) -> Choice:
        """The checkpoint that the first rank chooses, for all."""
        choice = run_on_all(self.world.loop, partial(self._choose, read_all, refused))
        chosen = choice.checkpoint.path.name if choice and choice.checkpoint else None
        name = all_gather_json(self.world.loop, chosen)[0]
        if choice is not None:
            return choice
        path = None if name is None else self.directory.checkpoints / name
        return Choice(None if path is None else ValidCheckpoint(path, read_manifest(path)), tuple(refused))

    def _choose(self, read_all: bool, refused: Sequence[Refusal]) -> Choice | None:
        if not self.world.is_first:
            return None
        choice = self.directory.choose_checkpoint(read_all=read_all, refused=refused)
        for refusal in choice.refusals[len(refused) :]:
            self.console.warn(f"not used: {refusal}")
        return choice

    def is_finished(self, choice: Choice) -> bool:
        """The run has been summed up at the step of this checkpoint, and no more steps are asked for."""
        summary = self.directory.summary()
        done = choice.checkpoint.manifest.step if choice.checkpoint else 0
        return summary is not None and summary["steps"] == done >= self.config.train.steps

    def attempt(self, choice: Choice, check_storage: Callable[[], None]) -> Outcome:
        """Run one attempt between its two lines in attempts.jsonl."""
        number = all_gather_json(self.world.loop, run_on_all(self.world.loop, partial(self._begin, choice)))[
            0
        ]
        ending = {"outcome": "failed", "reason": "ended from outside"}
        try:
            with StopSignal(self.config.run.max_seconds, self.world) as stop:
                outcome = self._with_a_whole_checkpoint(
                    partial(self._attempt, number, stop, check_storage), choice
                )
            ending = {"outcome": "finished"}
            return outcome
        except StopRequested as reason:
            ending = {"outcome": "stopped", "reason": str(reason)}
            raise
        except Exception as error:
            message = error.message if isinstance(error, YaokiError) else str(error)
            ending = {"outcome": "failed", "reason": f"{type(error).__name__}: {message}"}
            raise
        finally:
            self.directory.log_attempt({**ending, "ended_unix_s": time.time()})

    def _begin(self, choice: Choice) -> int:
        """The attempt's number, after its beginning was written down."""
        directory, config = self.directory, self.config
        if shortage := space_shortage(directory.path, config.run.min_free_gb):
            raise RefusedError(shortage, hint="free some space, or lower run.min_free_gb")
        directory.remove_leftovers()
        if choice.checkpoint is not None:
            directory.mark_saved()  # an attempt may have died between a commit and this
        number = len(directory.attempts()) + 1
        facts = {"attempt": number, "started_unix_s": time.time(), "pid": os.getpid()}
        directory.log_attempt(facts | {"num_workers": self.world.size})
        return number

    def _attempt(
        self, number: int, stop: StopSignal, check_storage: Callable[[], None], choice: Choice
    ) -> Outcome:
        with ExitStack() as stack:
            attempt = Attempt(
                self.directory,
                self.config,
                self.console,
                number,
                stop,
                self.startup,
                self.replay_only,
                self.world,
                check_storage,
                stack,
            )
            return attempt.run(choice)

    def _with_a_whole_checkpoint(self, attempt: Callable[[Choice], Outcome], choice: Choice) -> Outcome:
        """Run with the chosen checkpoint; if it is found damaged while it is restored, with the next one."""
        while True:
            try:
                return attempt(choice)
            except DamagedCheckpoint as damaged:
                self.console.warn(f"not used: {damaged.refusal}")
                choice = self.choose(read_all=False, refused=[*choice.refusals, damaged.refusal])


def _nothing_to_check() -> None:
    """There is no copy of the run to look after."""


def train_worker(directory: RunDirectory, config: Config) -> Outcome | None:
    """Train with all workers that the environment variables speak of; the outcome on the first one only.

    Raises what `train` raises, and PeerLostError when another worker is gone.
    """
    with world_of(config, os.environ) as world:
        with Console(config.run.show_samples_every, is_quiet=not world.is_first) as console:
            outcome = train(directory, config, console, world)
        return outcome if world.is_first else None
