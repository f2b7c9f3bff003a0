"""A run's checkpoints as seen without torch: list them, choose one, prune old ones.

"There is no checkpoint" and "there is none that can be used" are different answers, and every
checkpoint that is passed over is passed over with a reason. It knows nothing of what the parts mean.
At most one process changes a directory at a time; the run's lock sees to that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.layout import (
    MANIFEST,
    UNFINISHED_REASON,
    Candidate,
    Kind,
    directory_name,
    parse_directory,
    plain_child,
)
from yaoki.checkpoint.manifest import Manifest
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.retention import Decision, Entry, Policy, Standing, decide
from yaoki.checkpoint.verify import check_sizes, read_manifest, verify
from yaoki.errors import CorruptCheckpointError, NothingThereError, YaokiError
from yaoki.fs import _link_or_copy

_NUM_SHOWN = 20
"""Steps in a hint."""


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

    def choose(
        self, *, read_all: bool = True, refused: Sequence[Refusal] = (), was_saved: bool = False
    ) -> Choice:
        """The checkpoint to resume from: the newest valid one. None in it: none was committed yet.

        Args:
            read_all: False takes the first whose manifest and file sizes are right: for a quick look, or if
                all of it is verified when it is restored.
            refused: known to be unusable; passed over for the same reasons.
            was_saved: a checkpoint was committed here at some time, so there must be one.

        Raises:
            CorruptCheckpointError: some were committed, but none can be used; lists every reason.
            YaokiError: the directory exists but cannot be listed.
        """
        check: Callable[[Path], Manifest] = self._verify if read_all else check_sizes
        refusals: list[Refusal] = []
        known = {refusal.path: refusal for refusal in refused}
        for candidate in self.candidates():
            was_saved |= candidate.kind is not Kind.UNFINISHED
            if candidate.path in known:
                refusals.append(known[candidate.path])
                continue
            if candidate.kind is Kind.UNFINISHED:
                refusals.append(Refusal(candidate.path, f"unfinished: {UNFINISHED_REASON}"))
                continue
            try:
                manifest = check(candidate.path)
            except CorruptCheckpointError as error:
                refusals.append(Refusal(candidate.path, error.below(candidate.path)))
            else:
                return Choice(ValidCheckpoint(candidate.path, manifest), tuple(refusals))
        if was_saved:
            raise CorruptCheckpointError(
                f"{self.directory} holds no checkpoint that can be used, though some were saved"
                + "".join(f"\n  {refusal}" for refusal in refusals),
                hint="put one of them back from a copy; or let `yaoki restore RUN --at STEP` make it again, "
                "if the journal was kept; or, to start again from step 0 and lose this run's training, move "
                f"{self.directory.parent} away",
            )
        return Choice(None, tuple(refusals))

    def at(self, step: int) -> Path:
        """The committed checkpoint of a step, going by its name only.

        Raises:
            NothingThereError: there is none.
        """
        path = self.directory / directory_name(step)
        if not path.is_dir():
            raise self.none_at(step)
        return path

    def none_at(self, step: int) -> NothingThereError:
        """The error that there is no checkpoint of a step; its hint lists the steps that there are."""
        steps = sorted({c.step for c in self.candidates() if c.kind is not Kind.UNFINISHED})
        shown = ", ".join(map(str, steps[-_NUM_SHOWN:])) or "none"
        which = "there are those" if len(steps) <= _NUM_SHOWN else "the newest are those"
        return NothingThereError(
            f"{self.directory} has no checkpoint of step {step}", hint=f"{which} of steps {shown}"
        )

    def decide(
        self, policy: Policy, metrics: Mapping[int, float] | None = None
    ) -> list[tuple[Path, Decision]]:
        """What `prune` would do with each committed or replaced checkpoint, newest first.

        Reads in full only the newest ones, until `policy.keep_last` are found whole, and of those only what
        this object has not verified yet. Older ones are judged by their names.

        Args:
            metrics: by step, higher is better; for `keep_best`.

        Raises:
            CorruptCheckpointError: the pins cannot be read.
            YaokiError: the directory exists but cannot be listed.
        """
        standings = self._standings(policy.keep_last)
        pins = Pins(self.directory).by_step()  # after the reading, which may take long
        entries = [
            Entry(
                step=candidate.step,
                standing=standing,
                metric=(metrics or {}).get(candidate.step),
                pins=pins.get(candidate.step, ()),
                created_unix_s=None if policy.keep_since_unix_s is None else _created_unix_s(candidate.path),
            )
            for candidate, standing in standings
        ]
        decisions = decide(entries, policy)
        return [
            (candidate.path, decision) for (candidate, _), decision in zip(standings, decisions, strict=True)
        ]

    def prune(self, policy: Policy, *, metrics: Mapping[int, float] | None = None) -> list[Path]:
        """Remove what `policy` and the pins let go, oldest first; see `retention.decide` for what never goes.

        Unfinished directories are left alone. A pin that is set meanwhile is respected.

        Returns:
            The directories that are gone.

        Raises:
            CorruptCheckpointError: the pins cannot be read; nothing more is removed.
            YaokiError: a directory cannot be listed or removed.
        """
        pins = Pins(self.directory)
        removed = []
        for path, decision in reversed(self.decide(policy, metrics)):
            if decision.stays or decision.entry.step in pins.by_step():
                continue
            try:
                fs.remove_tree(path)
            except OSError as error:
                raise YaokiError(f"cannot remove {path}: {error.filename}: {error.strerror}") from error
            self._verified.discard(path)
            removed.append(path)
        return removed

    def _standings(self, num_needed: int) -> list[tuple[Candidate, Standing]]:
        """Every committed or replaced checkpoint, newest first; the first usable one stands for its step."""
        found: list[tuple[Candidate, Standing]] = []
        represented: set[int] = set()
        for candidate in self.candidates():
            if candidate.kind is Kind.UNFINISHED:
                continue
            standing = Standing.UNREAD
            if candidate.step in represented:
                standing = Standing.SPARE
            elif candidate.path in self._verified or num_needed > 0:
                standing = Standing.VERIFIED if self._is_valid(candidate.path) else Standing.SPARE
            if standing is not Standing.SPARE:
                represented.add(candidate.step)
            num_needed -= standing is Standing.VERIFIED
            found.append((candidate, standing))
        return found

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


def _created_unix_s(path: Path) -> float | None:
    try:
        return read_manifest(path).created_unix_s
    except CorruptCheckpointError:
        return None


def adopt_checkpoint(checkpoint: ValidCheckpoint, checkpoints: Path) -> bool:
    """Put the files of a checkpoint into another `checkpoints/`, under its own name. True if all are links.

    What was copied has not been read back.
    """
    target = checkpoints / directory_name(checkpoint.manifest.step)
    fs.make_directory(target)
    names = [file.name for file in checkpoint.manifest.files] + [MANIFEST]
    linked = [_link_or_copy(checkpoint.path / name, plain_child(target, name)) for name in names]
    fs.fsync_directory(target)
    return all(linked)
