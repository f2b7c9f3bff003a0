"""A run's checkpoints as seen without torch: list them, choose one, prune old ones.

"There is no checkpoint" and "there is none that can be used" are different answers, and every
checkpoint that is passed over is passed over with a reason. It knows nothing of what the parts mean.
At most one process changes a directory at a time; the run's lock sees to that.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.layout import Candidate, Kind, parse_directory
from yaoki.checkpoint.manifest import Manifest
from yaoki.checkpoint.retention import Entry, Policy, select_doomed
from yaoki.checkpoint.verify import verify
from yaoki.errors import CorruptCheckpointError, YaokiError


@dataclass(frozen=True, slots=True)
class ValidCheckpoint:
    """A checkpoint that was verified in full."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Refusal:
    """A directory that was passed over."""

    path: Path
    reason: str
    """Which file, and what is wrong with it."""

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The newest valid checkpoint, and why nothing newer was taken, newest first."""

    checkpoint: ValidCheckpoint | None
    refusals: tuple[Refusal, ...]


class Catalog:
    """The `checkpoints/` directory of one run; it need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._verified: set[Path] = set()
        """Read in full by this object; a verified checkpoint is not read again only to be kept."""

    def candidates(self) -> list[Candidate]:
        """All checkpoints and beginnings of one, by name, newest step first; nothing in them is read.

        Of one step the committed one comes first, then those that it replaced, then the unfinished.

        Raises:
            YaokiError: the directory exists but cannot be listed.
        """
        try:
            paths = sorted(self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise YaokiError(f"cannot list {self.directory}: {error.strerror}") from error
        found = [candidate for path in paths if (candidate := parse_directory(path)) is not None]
        return sorted(found, key=_preference)

    def newest_valid(self) -> Choice:
        """Verify from the newest on and stop at the first that is whole.

        Raises:
            YaokiError: the directory exists but cannot be listed.
        """
        refusals = []
        for candidate in self.candidates():
            if candidate.kind is Kind.UNFINISHED:
                refusals.append(Refusal(candidate.path, candidate.explanation))
                continue
            try:
                manifest = self._verify(candidate.path)
            except CorruptCheckpointError as error:
                refusals.append(Refusal(candidate.path, _without_path(error.message, candidate.path)))
            else:
                return Choice(ValidCheckpoint(candidate.path, manifest), tuple(refusals))
        return Choice(None, tuple(refusals))

    def choose_or_raise(self) -> Choice:
        """The checkpoint to resume from; none in it means that none was ever committed: start fresh.

        Raises:
            CorruptCheckpointError: some were committed, but none is whole; lists every reason.
            YaokiError: the directory exists but cannot be listed.
        """
        choice = self.newest_valid()
        committed = [candidate for candidate in self.candidates() if candidate.kind is not Kind.UNFINISHED]
        if choice.checkpoint is None and committed:
            reasons = "\n".join(f"  {refusal}" for refusal in choice.refusals)
            raise CorruptCheckpointError(
                f"{self.directory} holds checkpoints, but none that can be used:\n{reasons}",
                hint="restore one of them from a copy; or, to start again from step 0 and lose this run's "
                "training, move the directory away",
            )
        return choice

    def prune(
        self, policy: Policy, *, metrics: Mapping[int, float] | None = None, pinned: Collection[int] = ()
    ) -> list[Path]:
        """Remove what `policy` lets go, oldest first; see `retention.select_doomed` for what it never does.

        Checkpoints that this object has not verified yet are read in full first: one that is corrupt
        must not count as kept. Unfinished directories are left alone.

        Args:
            policy: what to keep.
            metrics: by step, higher is better; for `keep_best`.
            pinned: steps that stay in any case.

        Returns:
            The directories that are gone.

        Raises:
            YaokiError: a directory cannot be listed or removed.
        """
        entries = self._entries(metrics or {}, pinned)
        doomed = select_doomed([entry for entry, _ in entries], policy)
        removed = []
        for entry, path in reversed(entries):
            if entry in doomed:
                try:
                    fs.remove_tree(path)
                except OSError as error:
                    raise YaokiError(f"cannot remove {path}: {error.filename}: {error.strerror}") from error
                self._verified.discard(path)
                removed.append(path)
        return removed

    def _entries(self, metrics: Mapping[int, float], pinned: Collection[int]) -> list[tuple[Entry, Path]]:
        """Every committed or replaced checkpoint; at most one of a step counts as verified."""
        entries = []
        verified_steps: set[int] = set()
        for candidate in self.candidates():
            if candidate.kind is Kind.UNFINISHED:
                continue
            step = candidate.step
            verified = step not in verified_steps and self._is_valid(candidate.path)
            if verified:
                verified_steps.add(step)
            entries.append((Entry(step, verified, metrics.get(step), step in pinned), candidate.path))
        return entries

    def _is_valid(self, path: Path) -> bool:
        if path in self._verified:
            return True
        try:
            self._verify(path)
        except CorruptCheckpointError:
            return False
        return True

    def _verify(self, path: Path) -> Manifest:
        self._verified.discard(path)
        manifest = verify(path)
        self._verified.add(path)
        return manifest


def _preference(candidate: Candidate) -> tuple[int, int, int]:
    kinds = (Kind.COMMITTED, Kind.REPLACED, Kind.UNFINISHED)
    return (-candidate.step, kinds.index(candidate.kind), -candidate.generation)


def _without_path(message: str, path: Path) -> str:
    return message.removeprefix(f"{path}/").removeprefix(f"{path}: ")
