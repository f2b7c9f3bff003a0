"""The commands. Parses, calls, prints; imports torch only when a command needs it."""

import json
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
    split_words,
)
from yaoki.cli.render import as_json as json_of
from yaoki.config.load import load_config, with_overrides
from yaoki.config.schema import Config
from yaoki.errors import NothingThereError, PeerLostError, StopRequested, UsageError, YaokiError
from yaoki.launch.local import num_local_workers, run_workers
from yaoki.launch.process import end_with_launcher, is_launched
from yaoki.mirror.pull import fetch_config
from yaoki.runs.directory import RunDirectory

_ALL_TASKS = 10**9


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
        signal.signal(number, _leave)  # until training listens
    recipe, overrides = split_words(words or [])
    directory, config = _resolve(recipe, overrides, run)
    low, high = _num_workers(workers, may_be_range=ray)
    arguments = ("train", *(words or []), "--run", str(directory.path))
    if ray:
        from yaoki.launch.ray import Job, run_on_ray

        shared = RunDirectory(directory.path.resolve())
        job = Job(arguments, Path.cwd(), shared.logs, shared.metrics_path, shared.lock_holder)
        raise typer.Exit(run_on_ray(job, low, high, may_use_gpus=config.run.device != "cpu"))
    if high > 1:
        directory.require_free()  # the logs are those of whoever trains there
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


def _leave(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    name = signal.Signals(number).name
    print(f"stopped: {name} received; the same command goes on from what is on disk", file=sys.stderr)
    sys.exit(StopRequested.exit_code)


def _train_command(directory: RunDirectory, steps: int) -> str:
    """What goes on with the run as it was trained, by as many workers."""
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
    config = _eval_config(source, data or [], samples, overrides or [])
    from yaoki.cli.reports import describe_evaluation
    from yaoki.commands.evaluate import evaluate as evaluate_model
    from yaoki.train.console import Console

    with Console(0) as console:
        found = evaluate_model(source, at, config, out, console)
    print(json_of(found) if as_json else describe_evaluation(found))


def application() -> typer.Typer:
    """All commands."""
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
    """Entry point: runs a command and turns errors into messages and exit codes."""
    try:
        application()()
    except YaokiError as error:
        # Where the first worker of a launcher has the terminal, the launcher shows the cause.
        if not (isinstance(error, PeerLostError) and is_launched() and os.environ.get("RANK") == "0"):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}\n\nhint: see to the disk or the file, then try again", file=sys.stderr)
        sys.exit(YaokiError.exit_code)
    except StopRequested as reason:
        print(f"stopped: {reason}; the same command goes on from there", file=sys.stderr)
        sys.exit(reason.exit_code)


def _num_workers(text: str, *, may_be_range: bool) -> tuple[int, int]:
    """From `4` or `2:8` the fewest and the most workers."""
    low, colon, high = text.partition(":")
    numbers = [low, high if colon else low]
    if not all(number.isdecimal() for number in numbers) or not 0 < int(numbers[0]) <= int(numbers[1]):
        problem = "not a number of workers, nor a range of such numbers"
    elif colon and not may_be_range:
        problem = "a range, which only Ray can use"
    else:
        return int(numbers[0]), int(numbers[1])
    raise UsageError(
        f"--workers is {text!r}: {problem}", hint="give a number such as 4, or with --ray a range: 2:8"
    )


def _resolve(recipe: Path | None, overrides: list[str], run: Path | None) -> tuple[RunDirectory, Config]:
    """Directory and config of the run that is asked for."""
    if recipe is None and run is None:
        raise UsageError(
            "train what?",
            hint="give a recipe (yaoki train recipes/tiny.toml) or a run (yaoki train --run DIR)",
        )
    directory = RunDirectory(run if run is not None else Path("runs") / (recipe or Path()).stem)
    if recipe is not None:
        return directory, load_config(recipe, overrides)
    settings = dict(each.partition("=")[::2] for each in overrides)
    if not directory.exists and (url := settings.get("run.storage", "").strip("\"'")):
        return directory, with_overrides(_config_at(url, directory), overrides)
    directory.require_run()
    return directory, with_overrides(directory.stored_config(), overrides)


def _config_at(url: str, directory: RunDirectory) -> Config:
    """The config of the run at the URL that run.storage names."""
    stored = fetch_config(url)
    if stored is None:
        raise NothingThereError(
            f"there is no run in {directory.path}, nor at {url}",
            hint=f"start one: yaoki train RECIPE --run {directory.path} run.storage={url}",
        )
    return Config.model_validate_json(stored)


def _eval_config(source: Path, data: list[Path], samples: int, overrides: list[str]) -> Config:
    """The run's config, or the defaults for a model; evaluation on all tasks of the files that are named."""
    directory = RunDirectory(source)
    settings = [f"eval.num_samples={samples}"]
    if data:
        settings += [f"eval.files={json.dumps([str(file) for file in data])}", "data.format=auto"]
        settings.append(f"eval.num_tasks={_ALL_TASKS}")
    if directory.exists:
        return with_overrides(directory.stored_config(), settings + overrides)
    if not source.is_dir():
        raise NothingThereError(f"there is no run and no model in {source}")
    if not data:
        raise UsageError(f"{source} is a model, so it has no tasks of its own", hint="name some with --data")
    model = [f"policy.init_from={json.dumps(str(source))}", f"data.files={json.dumps([str(data[0])])}"]
    return load_config(None, model + settings + overrides)


if __name__ == "__main__":
    main()
