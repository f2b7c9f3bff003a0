"""JSON without loss of information. No torch.

`encode` is canonical: equal values have equal bytes. `encode_state` keeps the order of keys. `parse` reads
plain JSON from untrusted bytes, and `decode` a dataclass, with exact types.
"""

import dataclasses
import functools
import json
import math
from typing import Any, TypeAlias, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""Any JSON value."""

T = TypeVar("T")


class FormatError(Exception):
    """Bytes or values do not have the expected form; the message says where and what."""


def encode(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII, a newline at the end. Dataclasses become objects.

    Raises:
        FormatError: the value contains NaN, an infinity, or a type that JSON lacks.
    """
    return _dump(value, sort_keys=True, separators=(",", ":"), default=_fields)


def encode_state(value: JSON) -> bytes:
    """Indented JSON that `parse` turns back into an equal value, with its keys in the same order.

    Raises:
        FormatError: impossible for this value: NaN, an infinity, a tuple, a key that is not a string, an
            object.
    """
    data = _dump(value, indent=1)
    if json.loads(data) != value:
        raise FormatError("changes when it is read back from JSON: a tuple, or a key that is not a string")
    return data


def parse(data: bytes) -> JSON:
    """Plain JSON from untrusted bytes.

    Raises:
        FormatError: the bytes are not JSON, or contain a key twice, NaN or an infinity.
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


def decode(hint: type[T], data: bytes) -> T:
    """A dataclass, or another type that pydantic knows, from JSON: strictly, without conversions.

    A 1 is not `True` and a "1" is not 1. To have unknown keys refused, decorate the dataclass with
    `with_config(ConfigDict(extra="forbid"))`; the dataclasses in its fields inherit that. What passes
    nevertheless (a repeated key, a 1 for 1.0) differs from what `encode` makes of the result.

    Raises:
        FormatError: names the place and the value.
    """
    try:
        value: T = _adapter(cast(Any, hint)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise FormatError(f"not JSON: {first['ctx']['error']}") from None
        place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
        found = "" if first["type"] == "missing" else f", found {_shown(first['input'])}"
        raise FormatError(f"{place.lstrip('.')}: {first['msg']}{found}".lstrip(": ")) from None
    return value


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Cached, because building an adapter takes longer than using it."""
    return TypeAdapter(hint)


def _fields(value: Any) -> dict[str, object]:
    """The fields of a dataclass, one level deep."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


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
