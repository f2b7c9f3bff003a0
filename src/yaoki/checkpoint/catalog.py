"""The checkpoints of a run: list them, choose one, prune old ones. No torch.

"There is no checkpoint yet" and "there is none that can be used" are different answers, and each checkpoint
that is passed over has a reason. At most one process changes the directory at a time, which holds the run's
lock.
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

_NUM_SHOWN = 20
"""Steps in a hint."""


@dataclass(frozen=True, slots=True)
class ValidCheckpoint:
    """A checkpoint that was verified, in full or by its manifest and file sizes."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Refusal:
    """A checkpoint that cannot be used."""

    path: Path
    reason: str
    """The file and what is wrong with it."""

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The newest valid checkpoint, and why each newer one was passed over, newest first."""

    checkpoint: ValidCheckpoint | None
    refusals: tuple[Refusal, ...]


class Catalog:
    """The `checkpoints/` directory of a run; it need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._verified: set[Path] = set()
        """Read in full by this object, so that `decide` need not read them again."""

    def candidates(self) -> list[Candidate]:
        """All checkpoints and unfinished ones, going by their names, newest step first.

        Of one step, the committed one comes first, then those that it replaced, then an unfinished one.

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
        """The checkpoint to resume from: the newest valid one, or none if none was ever committed.

        Args:
            read_all: if False, check the manifest and the file sizes only: for a quick look, or if everything
                is verified when it is restored.
            refused: checkpoints that are known to be unusable.
            was_saved: whether the run recorded that it saved a checkpoint, so that there must be one.

        Raises:
            CorruptCheckpointError: some were committed, but none can be used; lists all reasons.
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
        """The path of the committed checkpoint of a step; it is not read.

        Raises:
            NothingThereError: there is none.
        """
        path = self.directory / directory_name(step)
        if not path.is_dir():
            raise self.none_at(step)
        return path

    def none_at(self, step: int) -> NothingThereError:
        """The error that there is no checkpoint of a step; its hint lists those that exist."""
        steps = sorted({c.step for c in self.candidates() if c.kind is not Kind.UNFINISHED})
        shown = ", ".join(map(str, steps[-_NUM_SHOWN:])) or "none"
        which = "there are those" if len(steps) <= _NUM_SHOWN else "the newest are those"
        return NothingThereError(
            f"{self.directory} has no checkpoint of step {step}", hint=f"{which} of steps {shown}"
        )

    def decide(
        self, policy: Policy, metrics: Mapping[int, float] | None = None
    ) -> list[tuple[Path, Decision]]:
        """What `prune` does with each committed or replaced checkpoint, newest first.

        Reads the newest checkpoints in full until `policy.keep_last` are verified, except those that this
        object has verified before. Older ones are not read.

        Args:
            metrics: for `keep_best`, by step; higher is better.

        Raises:
            CorruptCheckpointError: the pins cannot be read.
            YaokiError: the directory exists but cannot be listed.
        """
        standings = self._standings(policy.keep_last)
        pins = Pins(self.directory).by_step()  # read last, because verifying may take long
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
        """Remove the checkpoints that neither `policy` nor a pin keeps, oldest first; see `retention.decide`.

        Unfinished ones are ignored. A pin that is set while this runs is respected.

        Returns:
            The removed directories.

        Raises:
            CorruptCheckpointError: the pins cannot be read; nothing else is removed.
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
        """Every committed or replaced checkpoint, newest first; only one per step is not SPARE."""
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
    """Link or copy a checkpoint into another `checkpoints/` directory. True if all files are hard links.

    Copies are not read back.
    """
    target = checkpoints / directory_name(checkpoint.manifest.step)
    fs.make_directory(target)
    names = [file.name for file in checkpoint.manifest.files] + [MANIFEST]
    linked = [fs.link_or_copy(checkpoint.path / name, plain_child(target, name)) for name in names]
    fs.fsync_directory(target)
    return all(linked)
