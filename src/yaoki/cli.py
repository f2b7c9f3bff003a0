"""The commands. Parses, calls, prints; imports torch only when a command needs it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from yaoki import __version__
from yaoki.config.load import load_config, with_overrides
from yaoki.config.schema import Config
from yaoki.errors import StopRequested, UsageError, YaokiError
from yaoki.run.directory import RunDirectory

app = typer.Typer(
    help="Yaoki: train a language model to reason, in runs that resume completely and exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
StepOption = Annotated[int | None, typer.Option("--at", help="Step of the checkpoint; default the newest.")]


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE.toml] [section.field=value ...]", help="Recipe and overrides."),
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run directory; default runs/RECIPE.")] = None,
) -> None:
    """Start a run, or resume the one that the run directory holds."""
    recipe, overrides = _split(words or [])
    directory, config = _resolve(recipe, overrides, run)
    from yaoki.run.console import Console
    from yaoki.run.session import train as train_run

    with Console(config.run.show_samples_every) as console:
        outcome = train_run(directory, config, console)
    if outcome.already_finished:
        print(
            f"{directory.path} is finished: {outcome.step} of {config.train.steps} steps are done. "
            f"To go on, raise train.steps:\n  yaoki train --run {directory.path} train.steps={2 * outcome.step}"
        )
        return
    _print_outcome(directory, outcome.summary)


@app.callback(invoke_without_command=True)
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
        app()
    except YaokiError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except StopRequested as reason:
        print(f"stopped: {reason}; everything is saved, the same command goes on", file=sys.stderr)
        sys.exit(reason.exit_code)


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """The recipe (the one word without `=`) and the overrides."""
    overrides = [word for word in words if "=" in word]
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(f"one recipe at a time, not {' and '.join(recipes)}")
    return (Path(recipes[0]) if recipes else None), overrides


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
    directory.require_run()
    return directory, with_overrides(directory.stored_config(), overrides)


def _print_outcome(directory: RunDirectory, summary: dict[str, Any]) -> None:
    def shown(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3f}"

    path = directory.path
    print(
        f"""
run        {path} ({summary["steps"]} steps, {summary["attempts"]} attempts, {summary["train_seconds"]} s)
accuracy   {shown(summary["accuracy_before"])} before, {shown(summary["accuracy_after"])} after

resume     the command that started it goes on where it was; more steps:
           yaoki train --run {path} train.steps={2 * summary["steps"]}
look       yaoki status {path}
           tensorboard --logdir {directory.tensorboard}
export     yaoki export {path} --to {path}/export
evaluate   yaoki eval {path} --samples 4"""
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
