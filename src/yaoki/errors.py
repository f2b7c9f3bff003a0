"""The errors that users see. Each class has an exit code.

A message says what happened, with the values; the hint says what to do.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class YaokiError(Exception):
    """Base class of all errors that Yaoki raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


class UsageError(YaokiError):
    """The command line or the recipe is invalid: a wrong key, value, or combination."""

    exit_code = 2


class RefusedError(YaokiError):
    """A valid request that would break a guarantee: a changed config on resume, a run that is in use."""

    exit_code = 3


class DataError(RefusedError):
    """A dataset cannot be used: bad row, unreadable file, too few tasks."""


class CorruptCheckpointError(YaokiError):
    """A checkpoint, or another file that a run needs, is missing or damaged."""

    exit_code = 4

    def __init__(self, reason: str, *, path: Path | str | None = None, hint: str | None = None) -> None:
        """`path` is the file or directory at fault, or the URL of its copy."""
        super().__init__(reason if path is None else f"{path}: {reason}", hint=hint)
        self.reason = reason
        self.path = path

    def below(self, directory: Path) -> str:
        """The message with the path relative to `directory`, for text that names the directory itself."""
        if self.path is None or not Path(self.path).is_relative_to(directory):
            return self.message
        place = Path(self.path).relative_to(directory)
        return self.reason if place == Path() else f"{place}: {self.reason}"


class NothingThereError(YaokiError):
    """The named run, checkpoint, model or file does not exist."""

    exit_code = 5


class DivergenceError(YaokiError):
    """A step that was trained before came out with different bits."""


class NonFiniteError(YaokiError):
    """A loss or a gradient became NaN or infinite."""


class PeerLostError(YaokiError):
    """Another worker of the same run has died or does not answer."""

    exit_code = 6


class WeightSyncError(YaokiError):
    """The engine does not hold the policy's weights, so its samples are not from the policy."""


class StopRequested(Exception):
    """A signal or the time budget asked the run to stop. Exit code 75: run the same command again."""

    exit_code: ClassVar[int] = 75


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one if there is any, and the whole list."""
    names = sorted(known)
    listing = "known names: " + ", ".join(names)
    near = nearest(word, names)
    return listing if near is None else f"did you mean {near!r}? {listing}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `word`; None if none is like it."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
