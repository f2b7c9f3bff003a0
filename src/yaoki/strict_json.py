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
    try:
        return typing.cast(T, _object(_form_of(typing.cast(Any, cls)), value))
    except _Misfit as misfit:
        raise FormatError(f"{where}{misfit.place} {misfit.problem}") from None


class _Misfit(Exception):
    """A value is not what its place asks for; the place is put together on the way out, if it is needed."""

    def __init__(self, problem: str, place: str = "") -> None:
        self.problem = problem
        self.place = place

    def inside(self, place: str) -> "_Misfit":
        return _Misfit(self.problem, place + self.place)


class _Form:
    """A type that a value may have, taken to pieces once: a manifest has thousands of values of few types."""

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.is_object = dataclasses.is_dataclass(hint)
        self.origin = typing.get_origin(hint)
        self.arguments = typing.get_args(hint)

    @functools.cached_property
    def of_items(self) -> "_Form":
        """Of what a tuple or a mapping holds."""
        return _form_of(self.arguments[0 if self.origin is tuple else 1])

    @functools.cached_property
    def fields(self) -> dict[str, "_Form"]:
        """Of a dataclass."""
        hints = typing.get_type_hints(self.hint)
        return {field.name: _form_of(hints[field.name]) for field in dataclasses.fields(self.hint)}


@functools.cache
def _form_of(hint: Any) -> _Form:
    return _Form(hint)


def _at(place: str, form: _Form, value: JSON) -> object:
    try:
        return _value(form, value)
    except _Misfit as misfit:
        raise misfit.inside(place) from None


def _value(form: _Form, value: JSON) -> object:
    hint = form.hint
    if form.is_object:
        return _object(form, value)
    if form.origin is tuple and isinstance(value, list):
        if {form.of_items.hint}.issuperset(map(type, value)):
            return tuple(value)
        return tuple([_at(f"[{i}]", form.of_items, item) for i, item in enumerate(value)])
    if form.origin is Mapping and isinstance(value, dict):
        return {key: _at(f".{key}", form.of_items, item) for key, item in value.items()}
    if type(value) in (form.arguments if form.origin is types.UnionType else (hint,)):
        return value
    if isinstance(hint, type) and issubclass(hint, StrEnum) and value in list(hint):
        return hint(value)
    expected = hint.__name__ if form.origin is None else hint
    raise _Misfit(f"is {_shown(value)}, expected {expected}")


def _object(form: _Form, value: JSON) -> object:
    if not isinstance(value, dict):
        raise _Misfit(f"is {_shown(value)}, expected an object")
    if unknown := value.keys() - form.fields.keys():
        raise _Misfit(f"has an unknown key {_shown(min(unknown))}")
    if len(value) < len(form.fields):
        raise _Misfit(f"has no {next(name for name in form.fields if name not in value)!r}")
    fields = []
    for name, of_field in form.fields.items():
        found = value[name]
        fields.append(found if type(found) is of_field.hint else _at(f".{name}", of_field, found))
    return form.hint(*fields)


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
