"""Saving: from a snapshot to a checkpoint that is durable, and then read back from the disk.

The order is the whole point. Files are written to `step-N.tmp/` and made durable, the manifest last; one
rename then gives it its name, so a crash at any instant leaves either nothing new or all of it. After
that all of it is read back; until then it does not count, and nothing older may go.

If `step-N` exists already (found corrupt, or saved again after a resume), it is moved aside to
`step-N.replaced-K` just before that rename and removed only by `prune`. A crash between the two
renames loses nothing: replaced checkpoints are candidates too.

It knows nothing of when to save and of what the parts mean.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.blocks import DiskWriter, new_blocks
from yaoki.checkpoint.canonical import FormatError
from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint
from yaoki.checkpoint.layout import (
    MANIFEST,
    Kind,
    directory_name,
    parse_directory,
    replaced_name,
    unfinished_name,
)
from yaoki.checkpoint.manifest import FORMAT_VERSION, Manifest, PartEntry
from yaoki.checkpoint.snapshot import Snapshot
from yaoki.checkpoint.source import TensorSource, pin, written_to
from yaoki.checkpoint.verify import read_back
from yaoki.checkpoint.writer import EarlierFiles, PartFile, Receipt, plan, write_parts, write_state
from yaoki.errors import CorruptCheckpointError, YaokiError

_RESERVE_BYTES = 16 << 20
"""Room for JSON, headers and the file system's own needs, beside the tensors."""


@dataclass(frozen=True, slots=True)
class SaveInfo:
    """What the manifest says of the run, beside the state; see `Manifest`."""

    run_id: str
    attempt: int
    parent: str | None
    config_digest: str
    dataset_digest: str
    environment: Mapping[str, bool | int | float | str | None]


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A committed checkpoint."""

    path: Path
    step: int
    size_bytes: int
    duration_s: float
    """Until it was durable."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint that survives a power cut, but was not read back yet."""

    saved: SavedCheckpoint
    manifest: Manifest
    manifest_bytes: bytes


def _never_stop() -> None:
    """Somebody waits for the checkpoint."""


class CheckpointStore(Catalog):
    """A run's `checkpoints/` directory, for the one process that may write to it, one save at a time."""

    def __init__(self, directory: Path, verified: ValidCheckpoint | None = None) -> None:
        """`verified`: what this process has just read in full; unchanged parts are linked to its files."""
        super().__init__(directory)
        self._newest_verified = verified

    def save(self, snapshot: Snapshot, *, step: int, info: SaveInfo) -> SavedCheckpoint:
        """Write, commit and read back; on return the checkpoint survives a power cut and was found whole.

        Raises:
            YaokiError: see `commit` and `read_back`.
        """
        committed = self.commit(snapshot, TensorSource(), step=step, info=info)
        self.read_back(committed)
        return committed.saved

    def commit(
        self,
        snapshot: Snapshot,
        source: TensorSource,
        *,
        step: int,
        info: SaveInfo,
        poll: Callable[[], None] = _never_stop,
    ) -> Committed:
        """Write and commit; on return the checkpoint survives a power cut.

        Args:
            source: through which the snapshot's tensors are read; whoever waits for it must close it.
            poll: called between blocks; what it raises ends the save.

        Raises:
            YaokiError: no space, an I/O error, or a value that cannot be saved; names the path. What
                was committed before is untouched, and what was begun is removed if that is possible.
        """
        start_s = time.monotonic()
        path = self.directory / directory_name(step)
        unfinished = self.directory / unfinished_name(step)
        try:
            fs.make_directory(self.directory)
            self.remove_leftovers()
            files = plan(snapshot, rank=0, world_size=1)
            earlier = self._earlier_files()
            self._require_space(files, earlier)
            pieces = {file.name: file.pieces() for file in files}
            source.begin(pieces, partial(_require_untouched, snapshot))  # from here on it can be released
            fs.make_directory(unfinished)
            state = write_state(unfinished, snapshot)
            with DiskWriter(self._blocks, poll) as disk:
                receipts = write_parts(unfinished, files, source, disk, earlier)
            manifest = _manifest(snapshot, [*receipts, state], step, info)
            manifest_bytes = manifest.to_bytes()
            fs.write_file_durably(unfinished / MANIFEST, manifest_bytes)
            fs.fsync_directory(unfinished)
            self._give_name(unfinished, path, step)
        except OSError as error:
            raise YaokiError(
                f"cannot save {path}: {error.filename}: {error.strerror}",
                hint="earlier checkpoints are untouched; see to the disk, then resume the run",
            ) from error
        except FormatError as error:
            raise YaokiError(f"cannot save {path}: {error}") from error
        finally:
            if unfinished.exists():
                with contextlib.suppress(OSError):
                    fs.remove_tree(unfinished)
        saved = SavedCheckpoint(path, step, manifest.size_bytes, time.monotonic() - start_s)
        return Committed(saved, manifest, manifest_bytes)

    def read_back(self, committed: Committed, poll: Callable[[], None] = _never_stop) -> None:
        """Read what was just committed, from the disk; only then may `prune` count on it.

        Raises:
            YaokiError: it is not what was written. It keeps its name, and a resume will pass it over.
        """
        path = committed.saved.path
        try:
            read_back(path, committed.manifest_bytes, committed.manifest, self._blocks, poll)
        except CorruptCheckpointError as error:
            # What was found whole earlier may lie on the same disk, or be the same file.
            self._verified.clear()
            self._newest_verified = None
            raise YaokiError(
                f"{path} does not read back as it was written: {error.message}",
                hint="the disk or the memory is failing; a resume will take an earlier checkpoint",
            ) from error
        self._verified.add(path)
        self._newest_verified = ValidCheckpoint(path, committed.manifest)

    @cached_property
    def _blocks(self) -> list[memoryview]:
        """Kept from one save to the next: memory that is touched for the first time is slow."""
        blocks = new_blocks()
        pin(blocks)
        return blocks

    def _earlier_files(self) -> EarlierFiles | None:
        newest = self._newest_verified
        if newest is None:
            return None
        return EarlierFiles(newest.path, {file.name: file for file in newest.manifest.files})

    def _give_name(self, unfinished: Path, path: Path, step: int) -> None:
        self._verified.discard(path)
        if self._newest_verified is not None and self._newest_verified.path == path:
            self._newest_verified = None  # the name will stand for another one
        if os.path.lexists(path):
            fs.replace_durably(path, self._free_replaced_path(step))
        fs.replace_durably(unfinished, path)

    def _free_replaced_path(self, step: int) -> Path:
        generations = [candidate.generation for candidate in self.candidates() if candidate.step == step]
        return self.directory / replaced_name(step, max(generations) + 1)

    def remove_leftovers(self) -> None:
        """Unfinished and half-removed checkpoints of dead attempts; they only take up space."""
        for path in sorted(self.directory.glob(f"*{fs.TRASH_SUFFIX}")):
            if parse_directory(path.with_name(path.name.removesuffix(fs.TRASH_SUFFIX))) is not None:
                fs.remove_tree(path)
        for candidate in self.candidates():
            if candidate.kind is Kind.UNFINISHED:
                fs.remove_tree(candidate.path)

    def _require_space(self, files: Sequence[PartFile], earlier: EarlierFiles | None) -> None:
        """What is probably linked takes no space; if it is written after all, the disk may still say no."""
        needed_bytes = _RESERVE_BYTES + sum(
            file.size_bytes for file in files if earlier is None or earlier.find(file) is None
        )
        free_bytes = fs.num_free_bytes(self.directory)
        if free_bytes < needed_bytes:
            raise YaokiError(
                f"cannot save a checkpoint to {self.directory}: it needs {needed_bytes:,} bytes, "
                f"{free_bytes:,} are free",
                hint="free some space or keep fewer checkpoints, then resume the run",
            )


def _require_untouched(snapshot: Snapshot) -> None:
    """What is written to from now on, the source notices."""
    for name, part in snapshot.parts.items():
        if part.written_to is not None:
            raise written_to(f"{name}: {part.written_to}")


def _manifest(snapshot: Snapshot, receipts: Sequence[Receipt], step: int, info: SaveInfo) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        step=step,
        created_unix_s=time.time(),
        attempt=info.attempt,
        run_id=info.run_id,
        parent=info.parent,
        config_digest=info.config_digest,
        dataset_digest=info.dataset_digest,
        environment=info.environment,
        world_size=1,
        parts=tuple(
            PartEntry(name, part.scope, has_json=part.json is not None)
            for name, part in snapshot.parts.items()
        ),
        files=tuple(receipt.file for receipt in receipts),
        tensors=tuple(tensor for receipt in receipts for tensor in receipt.tensors),
    )
