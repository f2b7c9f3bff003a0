"""Commands on a run: `status`, `fork`, `restore`, `rollouts`, `mine`, `prove`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from yaoki.cli.options import JsonOption, OverridesArgument, RunArgument, WordsArgument, split_words
from yaoki.cli.render import json_text
from yaoki.errors import StopRequested, YaokiError
from yaoki.runs.directory import RunDirectory


def status(
    run: RunArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the checkpoint to resume from in full.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Attempts, steps, checkpoints, journal, and what a resume will do."""
    from yaoki.cli.reports import describe_status
    from yaoki.commands.status import run_status

    found = run_status(RunDirectory(run), read_all=verify)
    print(json_text(found) if as_json else describe_status(found))


def fork(
    run: RunArgument,
    at: Annotated[int, typer.Option("--at", help="Step to start from.", min=1)],
    to: Annotated[Path, typer.Option("--to", help="New run directory.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new run that starts from a step of this one, with other settings."""
    from yaoki.cli.reports import describe_fork
    from yaoki.commands.fork import fork as fork_run

    source = RunDirectory(run)
    made = fork_run(source, at, RunDirectory(to), overrides or [], lambda: _restored(source, at))
    print(json_text(made) if as_json else describe_fork(made))


def rollouts(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", help="Step whose rollouts to show.", min=1)],
    prompt: Annotated[
        int | None, typer.Option("--prompt", help="Index of a prompt in the step, from 0.", min=0)
    ] = None,
    correct: Annotated[
        bool | None, typer.Option("--correct/--wrong", help="Only correct ones, or only the others.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the completions of a step, from the journal."""
    from yaoki.cli.reports import describe_rollouts
    from yaoki.journal.browse import step_rows

    directory = RunDirectory(run)
    directory.require_run()
    rows, refused = step_rows(directory.rollouts, step, prompt=prompt, correct=correct)
    for refusal in refused:
        print(f"not read: {refusal}", file=sys.stderr)
    print(json_text(rows) if as_json else describe_rollouts(rows))


def mine(
    run: RunArgument,
    max_correct: Annotated[
        int, typer.Option("--max-correct", help="Most correct completions in the newest group.", min=0)
    ],
    to: Annotated[Path, typer.Option("--to", help="New training file.")],
    as_json: JsonOption = False,
) -> None:
    """Write the prompts that the policy rarely solves as a training file, from the journal."""
    from yaoki.cli.reports import describe_mined
    from yaoki.commands.mine import mine as mine_run
    from yaoki.train.console import Console

    with Console(0) as console, console.work("reading the journal") as advance:
        found = mine_run(RunDirectory(run), to, max_correct=max_correct, on_progress=advance)
    for refusal in found.refused:
        print(f"not read: {refusal}", file=sys.stderr)
    print(json_text(found) if as_json else describe_mined(found))


def restore(
    run: RunArgument,
    at: Annotated[int, typer.Option("--at", help="Step to restore.", min=0)],
    as_json: JsonOption = False,
) -> None:
    """Make the checkpoint of any step: replay the journal from the nearest earlier checkpoint."""
    path = _restored(RunDirectory(run), at)
    print(json.dumps({"step": at, "path": str(path)}) if as_json else path)


def _restored(run: RunDirectory, step: int) -> Path:
    from yaoki.commands.replay import restore_step
    from yaoki.train.console import Console

    try:
        with Console(0) as console:
            return restore_step(run, step, console)
    except StopRequested as reason:
        raise YaokiError(f"stopped: {reason}; nothing was restored", hint="run it again") from reason


def prove(
    words: WordsArgument = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps to train.", min=4)] = 6,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the instants at which processes are killed.")
    ] = 0,
    keep: Annotated[Path | None, typer.Option("--keep", help="New directory to keep the runs in.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show on a recipe that a killed and resumed run ends with the same bits as an unbroken one."""
    from yaoki.cli.reports import describe_proof
    from yaoki.commands.prove import prove as prove_recipe

    recipe, overrides = split_words(words or [])
    proof = prove_recipe(recipe, overrides, keep, steps, seed, lambda text: print(text, file=sys.stderr))
    print(json_text(asdict(proof) | {"holds": proof.holds}) if as_json else describe_proof(proof))
    if not proof.holds:
        raise typer.Exit(1)


COMMANDS = (status, fork, restore, rollouts, mine, prove)
