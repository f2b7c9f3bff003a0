"""`yaoki checkpoints ...`: list, verify, compare, prune and pin the checkpoints of a run."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from yaoki.cli.options import JsonOption, RunArgument
from yaoki.cli.render import (
    describe_checkpoint,
    describe_checkpoints,
    describe_diff,
    describe_pruning,
    json_text,
)
from yaoki.errors import CorruptCheckpointError
from yaoki.runs.directory import RunDirectory

Step = Annotated[int, typer.Argument(metavar="STEP", help="Step of a checkpoint.", min=0)]
PinName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pin.")]


def application() -> typer.Typer:
    """The typer application of `yaoki checkpoints`."""
    app = typer.Typer(help="List, verify, compare, prune and pin checkpoints.", no_args_is_help=True)
    app.command("list")(list_all)
    for command in (verify, diff, prune, pin, unpin):
        app.command()(command)
    return app


def list_all(run: RunArgument, as_json: JsonOption = False) -> None:
    """List all checkpoints, newest first; reads the manifests only."""
    from yaoki.commands.checkpoints import list_checkpoints
    from yaoki.journal.metrics import read_rows

    directory = RunDirectory(run)
    directory.require_run()
    found = list_checkpoints(directory, read_rows(directory.metrics_path))
    print(json_text(found) if as_json else describe_checkpoints(found))


def verify(
    run: RunArgument,
    at: Annotated[int | None, typer.Option("--at", help="Only the checkpoints of this step.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of every checkpoint; exit code 4 if any is damaged."""
    from yaoki.commands.checkpoints import verify_checkpoints

    found = []
    for entry in verify_checkpoints(RunDirectory(run), at):
        found.append(entry)
        if not as_json:
            print(describe_checkpoint(entry), flush=True)
    if as_json:
        print(json_text(found))
    damaged = [entry.name for entry in found if entry.problem is not None]
    if damaged:
        raise CorruptCheckpointError(
            f"{len(damaged)} of {len(found)} checkpoints cannot be used: {', '.join(damaged)}",
            hint="a resume passes over them; restore them from a copy, or let them be pruned",
        )


def diff(
    run: RunArgument,
    before: Annotated[int, typer.Argument(metavar="A", help="Step of a checkpoint.", min=0)],
    after: Annotated[int, typer.Argument(metavar="B", help="Step of the other checkpoint.", min=0)],
    other: Annotated[Path | None, typer.Option("--with", help="Run that B belongs to; default RUN.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare checkpoint A with checkpoint B, part by part: what differs, and by how much."""
    from yaoki.checkpoint.io.diff import diff_checkpoints
    from yaoki.commands.checkpoints import checkpoint_path

    left = checkpoint_path(RunDirectory(run), before)
    right = checkpoint_path(RunDirectory(other or run), after)
    found = diff_checkpoints(left, right)
    print(json_text(found) if as_json else describe_diff(found))


def prune(
    run: RunArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what stays, what is removed, and why.")
    ] = False,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Keep the newest N.")] = None,
    keep_every: Annotated[
        int | None, typer.Option(min=0, help="Keep multiples of this step; 0: none.")
    ] = None,
    keep_best: Annotated[
        int | None, typer.Option(min=0, help="Keep the best N by held-out accuracy.")
    ] = None,
    keep_hours: Annotated[float | None, typer.Option(min=0, help="Keep those that are younger.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove old checkpoints. Options default to the run's config; the newest are read in full."""
    from yaoki.commands.checkpoints import policy_of, prune_checkpoints
    from yaoki.journal.metrics import read_rows

    directory = RunDirectory(run)
    directory.require_run()
    asked = {"keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
    policy = policy_of(
        directory.stored_config().checkpoint.model_copy(
            update={name: value for name, value in asked.items() if value is not None}
        ),
        keep_since_unix_s=None if keep_hours is None else time.time() - 3600 * keep_hours,
    )
    rows = read_rows(directory.metrics_path)
    found = prune_checkpoints(directory, policy, dry_run=dry_run, rows=rows)
    print(json_text(found) if as_json else describe_pruning(found, dry_run=dry_run))


def pin(run: RunArgument, name: PinName, step: Step, as_json: JsonOption = False) -> None:
    """Pin the checkpoint of STEP as NAME, so that it is never pruned; also while the run is training."""
    from yaoki.commands.checkpoints import pin_checkpoint

    pin_checkpoint(RunDirectory(run), name, step)
    print(json.dumps({"pin": name, "step": step}) if as_json else f"step {step} is pinned as {name}")


def unpin(run: RunArgument, name: PinName, as_json: JsonOption = False) -> None:
    """Remove the pin NAME, so that its checkpoint can be pruned."""
    from yaoki.commands.checkpoints import unpin_checkpoint

    step = unpin_checkpoint(RunDirectory(run), name)
    print(
        json.dumps({"pin": name, "step": step}) if as_json else f"step {step} is no longer pinned as {name}"
    )
