"""The `yaoki` command. Each command parses, calls and prints; torch is imported when one needs it."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from yaoki import __version__
from yaoki.cli import checkpoints, plan, runs
from yaoki.cli.options import (
    JsonOption,
    OverridesArgument,
    RunArgument,
    StepOption,
    WordsArgument,
    evaluation_config,
    parse_num_workers,
    training_config,
)
from yaoki.cli.render import json_text
from yaoki.errors import PeerLostError, StopRequested, YaokiError
from yaoki.launch.local import num_local_workers, run_workers
from yaoki.launch.process import end_with_launcher, is_launched
from yaoki.runs.directory import RunDirectory


def train(
    words: WordsArgument = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run directory; default runs/RECIPE.")] = None,
    workers: Annotated[
        str,
        typer.Option(
            "--workers", metavar="N|MIN:MAX", help="Processes that train together; a range with --ray."
        ),
    ] = "1",
    ray: Annotated[bool, typer.Option("--ray", help="Train on a Ray cluster, or a local one.")] = False,
) -> None:
    """Start a run, or resume the one that the run directory holds."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _exit)  # until training installs its own handlers
    directory, config = training_config(words or [], run)
    low, high = parse_num_workers(workers, may_be_range=ray)
    arguments = ("train", *(words or []), "--run", str(directory.path))
    if ray:
        from yaoki.launch.ray import Job, run_on_ray

        shared = RunDirectory(directory.path.resolve())
        job = Job(arguments, Path.cwd(), shared.logs, shared.metrics_path, shared.lock_holder)
        raise typer.Exit(run_on_ray(job, low, high, may_use_gpus=config.run.device != "cpu"))
    if high > 1:
        directory.require_free()  # the workers of a run in progress write to the same logs
        raise typer.Exit(run_workers(high, arguments, directory.logs))
    end_with_launcher()
    from yaoki.cli.reports import describe_outcome
    from yaoki.train.console import Console
    from yaoki.train.session import train as train_run
    from yaoki.train.session import world_of

    steps = config.train.steps
    with world_of(config, os.environ) as world:
        with Console(
            config.run.show_samples_every, total_steps=steps, is_quiet=not world.is_first
        ) as console:
            outcome = train_run(directory, config, console, world)
        summary = outcome.summary if world.is_first else None
    if summary is None:
        return
    command = _train_command(directory, 2 * summary.steps)
    if outcome.already_finished:
        print(
            f"{directory.path} is finished: {summary.steps} of {summary.steps} steps are done. "
            f"To continue, raise train.steps:\n  {command}"
        )
        return
    print(describe_outcome(summary, directory, command))


def _exit(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    name = signal.Signals(number).name
    print(f"stopped: {name} received; the same command resumes the run", file=sys.stderr)
    sys.exit(StopRequested.exit_code)


def _train_command(directory: RunDirectory, steps: int) -> str:
    """The command that resumes the run with the same number of workers, to train until `steps`."""
    workers = num_local_workers()
    if workers is None:
        return f"the same command with train.steps={steps}"
    by = f" --workers {workers}" if workers > 1 else ""
    return f"yaoki train --run {directory.path}{by} train.steps={steps}"


def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", help="New folder for policy/ and critic/.")],
    at: StepOption = None,
) -> None:
    """Write policy and critic as Hugging Face folders, for transformers and vLLM."""
    from yaoki.commands.export import export_run

    exported = export_run(RunDirectory(run), at, to)
    for folder in exported.folders:
        print(f"{folder} (step {exported.step})")


def evaluate(
    source: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run, or a model folder.")],
    overrides: OverridesArgument = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Tasks to evaluate on; default the run's own.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Completions per task.")] = 1,
    at: StepOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Parquet file for the completions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a run or a model: pass@1 with a 95 % interval, pass@k, and the completions as Parquet."""
    config = evaluation_config(source, data or [], samples, overrides or [])
    from yaoki.cli.reports import describe_evaluation
    from yaoki.commands.evaluate import evaluate as evaluate_model
    from yaoki.train.console import Console

    with Console(0) as console:
        found = evaluate_model(source, at, config, out, console)
    print(json_text(found) if as_json else describe_evaluation(found))


def application() -> typer.Typer:
    """The typer application with all commands."""
    app = typer.Typer(
        help="Yaoki: train a language model to reason, in runs that resume completely and exactly.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(root)
    app.command()(train)
    app.command()(plan.plan)
    for command in runs.COMMANDS:
        app.command()(command)
    app.add_typer(checkpoints.application(), name="checkpoints")
    app.command()(export)
    app.command("eval")(evaluate)
    return app


def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Options of all commands."""
    if version:
        print(f"yaoki {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a command; turn its errors into messages and exit codes."""
    try:
        application()()
    except YaokiError as error:
        # If rank 0 of a launcher lost a peer, the launcher shows that peer's error.
        if not (isinstance(error, PeerLostError) and is_launched() and os.environ.get("RANK") == "0"):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}\n\nhint: check the file and its disk, then try again", file=sys.stderr)
        sys.exit(YaokiError.exit_code)
    except StopRequested as reason:
        print(f"stopped: {reason}; the same command resumes the run", file=sys.stderr)
        sys.exit(reason.exit_code)


if __name__ == "__main__":
    main()
