"""The environment that the bits of a run depend on besides its config: versions, processor, threads.

Small because the facts that need torch are in train/device.py.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Environment = dict[str, bool | int | float | str | None]


_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "jinja2", "math-verify", "sympy")
"""Libraries that compute weights, tokens, prompts and verdicts."""


def software() -> Environment:
    """The facts that are known without torch."""
    libraries: Environment = {name: _version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "machine": platform.machine(), **libraries}


def _version(library: str) -> str | None:
    """None where it is not installed: a run can be looked at on a machine that could not train it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def environment_digest(environment: Environment, attempt: int) -> str:
    """Equal for attempts that should do the same step with the same bits; never so without determinism."""
    facts: dict[str, Any] = dict(environment)
    if not environment["deterministic"]:
        facts["attempt"] = attempt
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def next_history(history: str, step_environment: str) -> str:
    """The history after one more step in an environment (a digest chain)."""
    return hashlib.blake2b(f"{history} {step_environment}".encode(), digest_size=8).hexdigest()


def cpu_name() -> str:
    """The processor's model, because the kernels that sum numbers are chosen by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Messages about the facts that differ, of those that both have."""
    return [
        f"{name} was {saved[name]!r}, is {value!r}"
        for name, value in now.items()
        if name in saved and saved[name] != value
    ]
