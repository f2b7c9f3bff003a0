"""Training as a command: lock, choose, compare, and one attempt between its two lines in the record."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from yaoki import fs
from yaoki.checkpoint.catalog import Choice, Refusal
from yaoki.config.compat import require_resumable
from yaoki.config.schema import Config
from yaoki.errors import RefusedError, StopRequested, YaokiError
from yaoki.models.determinism import configure
from yaoki.run.attempt import Attempt, Outcome
from yaoki.run.console import Console
from yaoki.run.directory import RunDirectory
from yaoki.run.recover import DamagedCheckpoint
from yaoki.run.startup import Startup
from yaoki.run.stop import StopSignal, space_shortage


def train(directory: RunDirectory, config: Config, console: Console, *, replay_only: bool = False) -> Outcome:
    """Start the run of `directory`, or resume what it holds, and train until train.steps.

    With `replay_only` nothing is sampled: every step comes out of the journal, or it is an error.

    Raises StopRequested (saved, to be resumed) and any YaokiError; never starts afresh where a
    checkpoint was meant to be.
    """
    startup = Startup()
    startup.ended("imports")
    with directory.lock():
        _open(directory, config, console)
        if directory.checkpoints.is_dir():
            fs.fsync_directory(directory.checkpoints)  # what is chosen must still be there after a power cut
        choice = directory.choose_checkpoint(read_all=False)
        if _is_finished(directory, config, choice):
            choice = directory.choose_checkpoint()  # nothing will be restored, so nothing else reads it
        _warn(console, choice.refusals)
        if _is_finished(directory, config, choice):
            summary = directory.summary()
            assert summary is not None
            return Outcome(directory, summary["steps"], summary, already_finished=True)
        configure(deterministic=config.run.deterministic, num_threads=config.run.num_threads)
        startup.ended("choose")
        return _attempt(directory, config, console, choice, startup, replay_only)


def _is_finished(directory: RunDirectory, config: Config, choice: Choice) -> bool:
    """The run has been summed up at the step of this checkpoint, and no more steps are asked for."""
    summary = directory.summary()
    done = choice.checkpoint.manifest.step if choice.checkpoint else 0
    return summary is not None and summary["steps"] == done >= config.train.steps


def _warn(console: Console, refusals: Sequence[Refusal]) -> None:
    for refusal in refusals:
        console.warn(f"not used: {refusal}")


def _open(directory: RunDirectory, config: Config, console: Console) -> None:
    """Make a new run, or make sure that this config may go on with the one that is there."""
    if not directory.exists:
        directory.create(config)
        return
    for change in require_resumable(directory.stored_config(), config):
        console.note(f"changed since the last attempt: {change}")


def _attempt(
    directory: RunDirectory,
    config: Config,
    console: Console,
    choice: Choice,
    startup: Startup,
    replay_only: bool,
) -> Outcome:
    """Run one attempt between its two lines in attempts.jsonl."""
    if shortage := space_shortage(directory.path, config.run.min_free_gb):
        raise RefusedError(shortage, hint="free some space, or lower run.min_free_gb")
    directory.remove_leftovers()
    if choice.checkpoint is not None:
        directory.mark_saved()  # an attempt may have died between a commit and this
    number = len(directory.attempts()) + 1
    directory.log_attempt({"attempt": number, "started_unix_s": time.time(), "pid": os.getpid()})
    ending = {"outcome": "failed", "reason": "ended from outside"}
    try:
        with StopSignal(config.run.max_seconds) as stop:
            attempt = partial(Attempt, directory, config, console, number, stop, startup, replay_only)
            outcome = _with_a_whole_checkpoint(attempt, choice)
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
        directory.log_attempt({**ending, "ended_unix_s": time.time()})


def _with_a_whole_checkpoint(attempt: Callable[[ExitStack], Attempt], choice: Choice) -> Outcome:
    """Run with the chosen checkpoint; if it is found damaged while it is restored, with the next one."""
    while True:
        try:
            with ExitStack() as stack:
                made = attempt(stack)
                return made.run(choice)
        except DamagedCheckpoint as damaged:
            known = len(choice.refusals)
            choice = made.directory.choose_checkpoint(
                read_all=False, refused=[*choice.refusals, damaged.refusal]
            )
            _warn(made.console, choice.refusals[known:])
