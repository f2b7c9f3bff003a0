"""Arguments and options that several commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

from yaoki.errors import UsageError

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


def split_words(words: list[str]) -> tuple[Path | None, list[str]]:
    """The recipe (the one word without `=`) and the overrides."""
    overrides = [word for word in words if "=" in word]
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(
            f"one recipe at a time, not {' and '.join(recipes)}",
            hint="what differs from the recipe is written section.field=value",
        )
    return (Path(recipes[0]) if recipes else None), overrides
