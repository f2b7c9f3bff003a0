"""What the bits of a run depend on besides its config: versions, processor, threads. No torch in here."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

Environment = dict[str, bool | int | float | str | None]


def software() -> Environment:
    """The facts that need no torch to know."""
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "machine": platform.machine(),
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what is another now, of the facts that both know."""
    return [
        f"{name} was {saved[name]!r}, is {value!r}"
        for name, value in now.items()
        if name in saved and saved[name] != value
    ]
