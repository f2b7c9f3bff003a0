"""From a TOML recipe and `section.field=value` overrides to a frozen Config, with errors that help."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from yaoki.config.schema import Config
from yaoki.errors import CorruptCheckpointError, NothingThereError, UsageError, nearest


def load_config(recipe: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, apply overrides in order, fill in defaults, validate.

    Raises NothingThereError when the recipe is missing and UsageError for anything wrong in it.
    """
    values = {} if recipe is None else _read_toml(recipe)
    for override in overrides:
        _apply(values, override)
    return _with_absolute_paths(_validate(values, "the recipe" if recipe is None else str(recipe)))


def read_stored(path: Path) -> Config:
    """The resolved config that a run keeps in its directory."""
    try:
        return _validate(json.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{path} is missing", hint="put it back as it was") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The same config with some fields set anew."""
    values = config.model_dump(mode="json")
    for override in overrides:
        _apply(values, override)
    return _with_absolute_paths(_validate(values, "the command line"))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NothingThereError(
            f"there is no recipe {path}", hint="recipes that come with Yaoki are in recipes/"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, _, raw = override.partition("=")
    path = key.strip().split(".")
    if len(path) != 2 or not all(path):
        raise UsageError(f"cannot read the override {override!r}", hint="overrides look like train.steps=200")
    section = values.setdefault(path[0], {})
    if not isinstance(section, dict):
        raise UsageError(
            f"{path[0]} is not a section in the recipe", hint=f"write [{path[0]}] and its fields"
        )
    section[path[1]] = _parse_value(raw.strip())


def _with_absolute_paths(config: Config) -> Config:
    """A run can then be resumed from any folder."""
    template = Path(config.data.template)
    data = config.data.model_copy(
        update={
            "files": tuple(path.absolute() for path in config.data.files),
            "template": str(template.absolute()) if template.is_file() else config.data.template,
        }
    )
    held_out = config.eval.model_copy(update={"files": tuple(path.absolute() for path in config.eval.files)})
    return config.model_copy(update={"data": data, "eval": held_out})


def _parse_value(raw: str) -> Any:
    """TOML's reading where it is one (numbers, booleans, lists, quoted text), else the text itself."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _validate(values: Mapping[str, Any], origin: str) -> Config:
    try:
        return Config.model_validate({"data": {}, **values})
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [_explain(detail) for detail in details]
        raise UsageError(f"{origin}: " + "\n".join(lines), hint=_nearest(details)) from error


def _explain(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"there is no setting {where}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{where}: {message}" if "." in where else message
    return (
        f"{where}: {message}, not {detail['input']!r}"
        if detail["type"] != "missing"
        else f"{where}: {message}"
    )


def _nearest(details: Sequence[ErrorDetails]) -> str | None:
    unknown = [d["loc"] for d in details if d["type"] == "extra_forbidden"]
    if not unknown:
        return None
    key = ".".join(str(part) for part in unknown[0])
    known = setting_names()
    sections = list(Config.model_fields)
    section, _, field = key.partition(".")
    elsewhere = [name for name in known if name.partition(".")[2] == (field or section)]
    inside = [name for name in known if name.partition(".")[0] == section]
    longer = [name for name in inside if name.startswith(key)]
    near = nearest(key, inside) or nearest(key, known if field else sections)
    if choices := longer or elsewhere or ([near] if near else []):
        return f"did you mean {' or '.join(choices)}?"
    return "docs/config.md lists every setting; sections are " + ", ".join(sections)


def setting_names() -> list[str]:
    """Every `section.field`, in the order of the schema."""
    names: list[str] = []
    for section, info in Config.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names.extend(f"{section}.{field}" for field in kind.model_fields)
    return names
