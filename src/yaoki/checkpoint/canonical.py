"""JSON without loss, and dataclasses decoded from it with exact types. No torch.

`encode` gives one byte string per value, `encode_state` keeps the order of keys; `parse` accepts any
bytes and either returns plain JSON or says what is wrong; `decode` builds a dataclass, strictly: no
missing or extra key, no 1 for true, no "1" for 1. It knows nothing of checkpoints.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

JSON: typing.TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""A value that JSON carries."""

T = TypeVar("T")


class FormatError(Exception):
    """Bytes or values that do not have the expected form; the message says where and what."""


def encode(value: object) -> bytes:
    """The canonical bytes: sorted keys, no spaces, ASCII, one newline at the end.

    Raises:
        FormatError: NaN, an infinity, or something that JSON has no word for.
    """
    return _dump(value, sort_keys=True, separators=(",", ":"))


def encode_state(value: JSON) -> bytes:
    """Readable bytes from which `parse` gives back an equal value, its keys in the same order.

    Raises:
        FormatError: that is impossible: NaN, an infinity, a tuple, a key that is no string, an object.
    """
    data = _dump(value, indent=1)
    if json.loads(data) != value:
        raise FormatError("comes back from JSON as another value: a tuple, or a key that is no string")
    return data


def parse(data: bytes) -> JSON:
    """JSON from any bytes; duplicate keys, NaN and infinities are refused.

    Raises:
        FormatError: the bytes are not such JSON.
    """
    try:
        value: JSON = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from error
    return value


def decode(cls: type[T], value: JSON, where: str) -> T:
    """A dataclass from parsed JSON: every field present, no other, each of exactly its annotated type.

    Args:
        cls: its fields are str, int, float, bool, None, unions of these, StrEnums, `tuple[X, ...]`,
            `Mapping[str, X]`, and dataclasses of the same kind.
        where: name of `value` in error messages.

    Raises:
        FormatError: names the place and the value.
    """
    if not isinstance(value, dict):
        raise FormatError(f"{where} is {_shown(value)}, expected an object")
    hints = _type_hints(typing.cast(Any, cls))
    if unknown := value.keys() - hints.keys():
        raise FormatError(f"{where} has an unknown key {_shown(min(unknown))}")
    if missing := [name for name in hints if name not in value]:
        raise FormatError(f"{where} has no {missing[0]!r}")
    fields = {
        name: found if type(found := value[name]) is hint else _decode_value(hint, found, f"{where}.{name}")
        for name, hint in hints.items()
    }
    return cls(**fields)


@functools.cache
def _type_hints(cls: type[object]) -> dict[str, Any]:
    """Of each field; a manifest has thousands of objects of a few classes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]


@functools.cache
def _form_of(hint: Any) -> tuple[bool, Any, tuple[Any, ...]]:
    """Whether it is a dataclass; its origin and arguments, if it is generic."""
    return dataclasses.is_dataclass(hint), typing.get_origin(hint), typing.get_args(hint)


def _decode_value(hint: Any, value: JSON, where: str) -> object:
    is_object, origin, arguments = _form_of(hint)
    if is_object:
        return decode(typing.cast(type[object], hint), value, where)
    if origin is tuple and isinstance(value, list):
        if all(type(item) is arguments[0] for item in value):
            return tuple(value)
        return tuple(_decode_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, StrEnum) and value in list(hint):
        return hint(value)
    if type(value) in (arguments if origin is types.UnionType else (hint,)):
        return value
    expected = hint.__name__ if origin is None else hint
    raise FormatError(f"{where} is {_shown(value)}, expected {expected}")


def _dump(value: object, **style: Any) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False, **style)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"cannot be written as JSON: {error}") from error
    return text.encode("ascii") + b"\n"


def _unique_keys(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {_shown(next(k for k in keys if keys.count(k) > 1))} occurs twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_shown(text)} is not a finite number")
    return number


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
