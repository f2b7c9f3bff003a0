"""Names for checkpoints that must be kept: `checkpoints/pins.json`, an object of steps by name. No torch.

Whoever prunes reads the file before each removal, so a pin can be set while a run is training. A pin does not
ensure that there is a checkpoint of its step.
"""

import json
import re
from pathlib import Path

from yaoki import fs
from yaoki.errors import CorruptCheckpointError, NothingThereError, UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)


class Pins:
    """The pins of one `checkpoints/` directory. Concurrent changes may overwrite each other."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "pins.json"

    def by_name(self) -> dict[str, int]:
        """The step of each pin, sorted by name.

        Raises:
            CorruptCheckpointError: the file exists and does not have the expected form.
        """
        try:
            found = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise self._corrupt(f"not JSON: {error}") from error
        if not isinstance(found, dict) or not all(type(step) is int for step in found.values()):
            raise self._corrupt("not an object of steps by name")
        return dict(sorted(found.items()))

    def by_step(self) -> dict[int, tuple[str, ...]]:
        """The names of the pins of each step."""
        names: dict[int, tuple[str, ...]] = {}
        for name, step in self.by_name().items():
            names[step] = (*names.get(step, ()), name)
        return names

    def set(self, name: str, step: int) -> None:
        """Pin the checkpoint of `step` as `name`, which may have pinned another one. Durable.

        Raises:
            UsageError: the name has characters that are not allowed.
        """
        if _NAME.fullmatch(name) is None:
            raise UsageError(
                f"{name!r} cannot be the name of a pin", hint="letters, digits, '.', '_' and '-', at most 100"
            )
        self._write({**self.by_name(), name: step})

    def remove(self, name: str) -> int:
        """Remove a pin and return its step. Durable.

        Raises:
            NothingThereError: there is no pin of this name.
        """
        pins = self.by_name()
        if name not in pins:
            raise NothingThereError(
                f"nothing is pinned as {name!r}", hint=f"pinned are: {', '.join(pins) or 'none'}"
            )
        step = pins.pop(name)
        self._write(pins)
        return step

    def _write(self, pins: dict[str, int]) -> None:
        fs.publish(self._path, (json.dumps(pins, indent=1, sort_keys=True) + "\n").encode())

    def _corrupt(self, problem: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            problem,
            path=self._path,
            hint="no checkpoint is removed while the pins cannot be read: repair the file, or delete it and "
            "pin again",
        )
