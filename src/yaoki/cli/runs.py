"""Commands that look at a run or make something of it, without training. Parses, calls, prints."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from yaoki.cli import render
from yaoki.cli.options import JsonOption, OverridesArgument, RunArgument, WordsArgument, split_words
from yaoki.errors import StopRequested, YaokiError
from yaoki.runs.directory import RunDirectory


def status(
    run: RunArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the checkpoint to resume from in full.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Attempts, steps, checkpoints, journal, and what a resume would do."""
    from yaoki.cli.reports import describe_status
    from yaoki.commands.status import run_status

    found = run_status(RunDirectory(run), read_all=verify)
    print(render.as_json(found) if as_json else describe_status(found))


def fork(
    run: RunArgument,
    at: Annotated[int, typer.Option("--at", help="Step to go on from.", min=1)],
    to: Annotated[Path, typer.Option("--to", help="New run directory.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """A new run that goes on from a step of this one, with other settings; the old one stays as it is."""
    from yaoki.cli.reports import describe_fork
    from yaoki.commands.fork import fork as fork_run

    source = RunDirectory(run)
    made = fork_run(source, at, RunDirectory(to), overrides or [], lambda: _restored(source, at))
    print(render.as_json(made) if as_json else describe_fork(made))


def rollouts(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", help="Step whose rollouts to show.", min=1)],
    prompt: Annotated[
        int | None, typer.Option("--prompt", help="Only those of this prompt of the step, from 0.", min=0)
    ] = None,
    correct: Annotated[
        bool | None, typer.Option("--correct/--wrong", help="Only those that are right, or that are not.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What was sampled in a step, from the journal."""
    from yaoki.cli.reports import describe_rollouts
    from yaoki.journal.browse import step_rows

    directory = RunDirectory(run)
    directory.require_run()
    rows, refused = step_rows(directory.rollouts, step, prompt=prompt, correct=correct)
    for refusal in refused:
        print(f"not read: {refusal}", file=sys.stderr)
    print(render.as_json(rows) if as_json else describe_rollouts(rows))


def mine(
    run: RunArgument,
    max_correct: Annotated[
        int, typer.Option("--max-correct", help="Solved at most so often in the newest group.", min=0)
    ],
    to: Annotated[Path, typer.Option("--to", help="New training file.")],
    as_json: JsonOption = False,
) -> None:
    """Write the prompts that the policy hardly ever solves as a training file, from the journal."""
    from yaoki.cli.reports import describe_mined
    from yaoki.commands.mine import mine as mine_run
    from yaoki.train.console import Console

    with Console(0) as console, console.work("reading the journal") as advance:
        found = mine_run(RunDirectory(run), to, max_correct=max_correct, on_progress=advance)
    for refusal in found.refused:
        print(f"not read: {refusal}", file=sys.stderr)
    print(render.as_json(found) if as_json else describe_mined(found))


def restore(
    run: RunArgument,
    at: Annotated[int, typer.Option("--at", help="Step to restore.", min=0)],
    as_json: JsonOption = False,
) -> None:
    """Make the checkpoint of any step: the nearest earlier one, and the steps after it from the journal."""
    path = _restored(RunDirectory(run), at)
    print(json.dumps({"step": at, "path": str(path)}) if as_json else f"{path}")


def _restored(run: RunDirectory, step: int) -> Path:
    from yaoki.commands.replay import restore_step
    from yaoki.train.console import Console

    try:
        with Console(0) as console:
            return restore_step(run, step, console)
    except StopRequested as reason:
        raise YaokiError(f"stopped: {reason}; nothing was restored", hint="start it again") from reason


def prove(
    words: WordsArgument = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps to train.", min=4)] = 6,
    seed: Annotated[int, typer.Option("--seed", help="When the processes are killed.")] = 0,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the runs in this new directory.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show on your own recipe that a killed and resumed run has the bits of an unbroken one."""
    from yaoki.cli.reports import describe_proof
    from yaoki.commands.prove import prove as prove_recipe

    recipe, overrides = split_words(words or [])
    proof = prove_recipe(recipe, overrides, keep, steps, seed, lambda text: print(text, file=sys.stderr))
    found = asdict(proof) | {"holds": proof.holds}
    print(json.dumps(found, indent=2) if as_json else describe_proof(proof))
    if not proof.holds:
        raise typer.Exit(1)


COMMANDS = (status, fork, restore, rollouts, mine, prove)
