"""Names for checkpoints that must stay: `checkpoints/pins.json`, an object of step by name. No torch.

A process that prunes reads the file each time, so a pin can be set while a run is training. Knows
nothing of whether there is a checkpoint at a step.
"""

import json
import re
from pathlib import Path

from yaoki import fs
from yaoki.errors import CorruptCheckpointError, NothingThereError, UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)


class Pins:
    """The pins of one `checkpoints/` directory; one person changes them at a time."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "pins.json"

    def by_name(self) -> dict[str, int]:
        """Step by name, in the order of the names.

        Raises:
            CorruptCheckpointError: the file is there and is not one that `set` wrote.
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
        """Names by step."""
        names: dict[int, tuple[str, ...]] = {}
        for name, step in self.by_name().items():
            names[step] = (*names.get(step, ()), name)
        return names

    def set(self, name: str, step: int) -> None:
        """Make `name` hold the checkpoint of `step`, and no other any more. Durable on return.

        Raises:
            UsageError: the name is not plain.
        """
        if _NAME.fullmatch(name) is None:
            raise UsageError(
                f"{name!r} cannot be the name of a pin", hint="letters, digits, '.', '_' and '-', at most 100"
            )
        self._write({**self.by_name(), name: step})

    def remove(self, name: str) -> int:
        """Forget a name; returns the step that it held. Durable on return.

        Raises:
            NothingThereError: there is no such name.
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
            hint="nothing is removed while it is unknown what is pinned: repair the file, or remove it and "
            "pin again",
        )
