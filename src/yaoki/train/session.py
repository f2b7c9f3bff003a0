"""Training as a command: lock the run, compare configs, choose a checkpoint, and train from it in one
attempt."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Literal

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
from yaoki.rl.algorithm import algorithm_of
from yaoki.runs.directory import RunDirectory
from yaoki.runs.records import AttemptEnd, AttemptStart
from yaoki.train.attempt import Context, Outcome, attempt
from yaoki.train.console import Console
from yaoki.train.device import device_type
from yaoki.train.resume import DamagedCheckpoint
from yaoki.train.step_metrics import Stopwatch
from yaoki.train.stop import StopSignal, space_shortage


def world_of(config: Config, environment: Mapping[str, str]) -> AbstractContextManager[World]:
    """The ranks that a launcher's environment variables describe, as the config needs them; see `joined`."""
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
    """Start the run of `directory`, or resume it, and train until train.steps. All ranks call this together.

    Args:
        world: one rank alone if not given.
        replay_only: nothing is sampled: every step is replayed from the journal, or it is an error.

    Raises:
        StopRequested: asked to stop; everything is saved, to be resumed.
        YaokiError: see its subclasses. A fresh start never replaces a checkpoint that was asked for.
    """
    algorithm_of(config)  # a wrong name or combination, before anything is made
    timer = Stopwatch()
    with ExitStack() as stack:
        if world is None:
            world = stack.enter_context(world_of(config, {}))
        stack.enter_context(directory.lock() if world.is_first else nullcontext())
        with timer("choose"):
            open_run = partial(_open_run, directory, config, console, stack)
            mirror_check = run_on_all(world.loop, partial(rank0_first, world, open_run))
            choice = _choose(directory, console, world, read_all=False)
            if _is_finished(directory, config, choice):
                choice = _choose(directory, console, world)  # it will not be restored, which would verify it
            if _is_finished(directory, config, choice):
                return Outcome(directory, directory.summary(), already_finished=True)
        configure(deterministic=config.run.deterministic, num_threads=config.run.num_threads)
        begin = partial(_begin_attempt, directory, config, world, choice)
        number = all_gather_json(world.loop, run_on_all(world.loop, begin))[0]
        with _attempt_record(directory, world), StopSignal(config.run.max_seconds, world) as stop:
            checks = [] if mirror_check is None else [mirror_check]
            context = Context(directory, config, console, world, stop, number, replay_only, checks, timer)
            while True:
                try:
                    return attempt(context, choice)
                except DamagedCheckpoint as damaged:
                    console.warn(f"not used: {damaged.refusal}")
                    refused = [*choice.refusals, damaged.refusal]
                    choice = _choose(directory, console, world, read_all=False, refused=refused)


def _open_run(
    directory: RunDirectory, config: Config, console: Console, stack: ExitStack
) -> Callable[[], None] | None:
    """On rank 0: create the run, or make sure that this config may continue it.

    Returns a function that raises if the copy of the run at `run.storage` is too far behind; None without a
    copy.
    """
    storage = config.run.storage
    if storage and fetch(storage, directory.path, console.warn):
        console.note(f"fetched from {storage}")
    if not directory.exists:
        directory.create(config)
    elif not directory.has_begun:
        directory.begin_anew(config)
    else:
        for change in require_resumable(directory.stored_config(), config):
            console.note(f"changed since the last attempt: {change}")
    if directory.checkpoints.is_dir():
        fs.fsync_directory(directory.checkpoints)  # the chosen one must still be there after a power cut
    if not storage:
        return None
    return stack.enter_context(Mirror(directory.path, storage, config.run.storage_every_s, console.warn)).poll


def _choose(
    directory: RunDirectory,
    console: Console,
    world: World,
    *,
    read_all: bool = True,
    refused: Sequence[Refusal] = (),
) -> Choice:
    """The checkpoint that rank 0 chooses, on all ranks."""

    def on_rank0() -> Choice | None:
        if not world.is_first:
            return None
        choice = directory.choose_checkpoint(read_all=read_all, refused=refused)
        for refusal in choice.refusals[len(refused) :]:
            console.warn(f"not used: {refusal}")
        return choice

    choice = run_on_all(world.loop, on_rank0)
    chosen = choice.checkpoint.path.name if choice and choice.checkpoint else None
    name = all_gather_json(world.loop, chosen)[0]
    if choice is not None:
        return choice
    path = None if name is None else directory.checkpoints / name
    return Choice(None if path is None else ValidCheckpoint(path, read_manifest(path)), tuple(refused))


def _is_finished(directory: RunDirectory, config: Config, choice: Choice) -> bool:
    """The run was summed up at the step of this checkpoint, and no more steps are asked for."""
    summary = directory.summary()
    done = choice.checkpoint.manifest.step if choice.checkpoint else 0
    return summary is not None and summary.steps == done >= config.train.steps


def _begin_attempt(directory: RunDirectory, config: Config, world: World, choice: Choice) -> int:
    """On rank 0, write down the attempt's start. Returns its number."""
    if shortage := space_shortage(directory.path, config.run.min_free_gb):
        raise RefusedError(shortage, hint="free some space, or lower run.min_free_gb")
    number = len(directory.attempts()) + 1
    if world.is_first:
        directory.remove_leftovers()
        if choice.checkpoint is not None:
            directory.mark_saved()  # an attempt may have died between a commit and this
        start = AttemptStart(
            attempt=number, started_unix_s=time.time(), pid=os.getpid(), num_workers=world.size
        )
        directory.log_attempt(start)
    return number


@contextmanager
def _attempt_record(directory: RunDirectory, world: World) -> Iterator[None]:
    """Writes down how the attempt ended."""
    outcome: Literal["finished", "stopped", "failed"] = "failed"
    reason: str | None = "ended from outside"
    try:
        yield
        outcome, reason = "finished", None
    except StopRequested as stop:
        outcome, reason = "stopped", str(stop)
        raise
    except Exception as error:
        message = error.message if isinstance(error, YaokiError) else str(error)
        reason = f"{type(error).__name__}: {message}"
        raise
    finally:
        if world.is_first:
            directory.log_attempt(AttemptEnd(outcome=outcome, reason=reason, ended_unix_s=time.time()))
