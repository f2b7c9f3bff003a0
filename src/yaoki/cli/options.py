"""Arguments and options that commands share, and the recipe, run and number of workers that they select."""

import json
from pathlib import Path
from typing import Annotated

import typer

from yaoki.config.load import load_config, with_overrides
from yaoki.config.schema import Config
from yaoki.errors import NothingThereError, UsageError
from yaoki.mirror.pull import fetch_config
from yaoki.runs.directory import RunDirectory

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
StepOption = Annotated[int | None, typer.Option("--at", help="Step of a checkpoint; default newest.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[section.field=value ...]", help="Settings to change.")
]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE.toml] [section.field=value ...]", help="Recipe and overrides."),
]

_ALL_TASKS = 10**9


def split_words(words: list[str]) -> tuple[Path | None, list[str]]:
    """The recipe (the one word without `=`) and the overrides."""
    overrides = [word for word in words if "=" in word]
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(
            f"more than one recipe given: {' and '.join(recipes)}",
            hint="give one, and settings that differ from it as section.field=value",
        )
    return (Path(recipes[0]) if recipes else None), overrides


def parse_num_workers(text: str, *, may_be_range: bool) -> tuple[int, int]:
    """The minimum and maximum of `4` or `2:8`."""
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


def training_config(words: list[str], run: Path | None) -> tuple[RunDirectory, Config]:
    """Directory and config of the run to train: a recipe, or the stored config of the run in `--run`.

    Raises:
        UsageError: neither a recipe nor a run directory is given, or the recipe or an override is invalid.
        NothingThereError: there is no such recipe or run.
    """
    recipe, overrides = split_words(words)
    if recipe is None and run is None:
        raise UsageError(
            "no recipe and no run directory given",
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
    stored = fetch_config(url)
    if stored is None:
        raise NothingThereError(
            f"there is no run in {directory.path}, nor at {url}",
            hint=f"start one: yaoki train RECIPE --run {directory.path} run.storage={url}",
        )
    return Config.model_validate_json(stored)


def evaluation_config(source: Path, data: list[Path], samples: int, overrides: list[str]) -> Config:
    """The stored config of a run, or the defaults for a model folder, to evaluate on all tasks of `data`.

    Raises:
        NothingThereError: `source` is neither a run nor a folder.
        UsageError: `source` is a model folder and `data` is empty, or an override is invalid.
    """
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
