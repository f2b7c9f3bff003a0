"""Saving: from a snapshot to a checkpoint that is durable, read back and then committed.

The order is the whole point. Files are written to `step-N.tmp/` and made durable, the manifest last;
all of it is read back; one rename then gives it its name. So whatever is called `step-N` was
found whole before it got that name, and a crash at any instant leaves either nothing new or all of it.

If `step-N` exists already (found corrupt, or saved again after a resume), it is moved aside to
`step-N.replaced-K` just before that rename and removed only by `prune`. A crash between the two
renames loses nothing: replaced checkpoints are candidates too.

It knows nothing of when to save and of what the parts mean.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.canonical import FormatError
from yaoki.checkpoint.catalog import Catalog
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
from yaoki.checkpoint.verify import verify_written
from yaoki.checkpoint.writer import Receipt, write_snapshot, write_state
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


class CheckpointStore(Catalog):
    """A run's `checkpoints/` directory, for the one process that may write to it."""

    def save(self, snapshot: Snapshot, *, step: int, info: SaveInfo) -> SavedCheckpoint:
        """Write, read back and commit; on return the checkpoint survives a power cut.

        Raises:
            YaokiError: no space, an I/O error, or a value that cannot be saved; names the path. What
                was committed before is untouched, and what was begun is removed if that is possible.
        """
        start_s = time.monotonic()
        path = self.directory / directory_name(step)
        unfinished = self.directory / unfinished_name(step)
        try:
            fs.make_directory(self.directory)
            self._remove_leftovers()
            self._require_space(snapshot)
            fs.make_directory(unfinished)
            receipts = [
                *write_snapshot(unfinished, snapshot, rank=0, world_size=1),
                write_state(unfinished, snapshot),
            ]
            manifest = _manifest(snapshot, receipts, step, info)
            self._commit(unfinished, path, manifest)
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
        return SavedCheckpoint(path, step, manifest.size_bytes, time.monotonic() - start_s)

    def _commit(self, unfinished: Path, path: Path, manifest: Manifest) -> None:
        fs.write_file_durably(unfinished / MANIFEST, manifest.to_bytes())
        fs.fsync_directory(unfinished)
        try:
            verify_written(unfinished, manifest)
        except CorruptCheckpointError as error:
            raise YaokiError(
                f"cannot save {path}: what was written does not read back: {error.message}",
                hint="the disk or the memory is failing; earlier checkpoints are untouched",
            ) from error
        self._verified.discard(path)
        if os.path.lexists(path):
            fs.replace_durably(path, self._free_replaced_path(manifest.step))
        fs.replace_durably(unfinished, path)
        self._verified.add(path)

    def _free_replaced_path(self, step: int) -> Path:
        generations = [candidate.generation for candidate in self.candidates() if candidate.step == step]
        return self.directory / replaced_name(step, max(generations) + 1)

    def _remove_leftovers(self) -> None:
        """Unfinished and half-removed checkpoints of dead attempts; they only take up space."""
        for path in sorted(self.directory.glob(f"*{fs.TRASH_SUFFIX}")):
            if parse_directory(path.with_name(path.name.removesuffix(fs.TRASH_SUFFIX))) is not None:
                fs.remove_tree(path)
        for candidate in self.candidates():
            if candidate.kind is Kind.UNFINISHED:
                fs.remove_tree(candidate.path)

    def _require_space(self, snapshot: Snapshot) -> None:
        needed_bytes = sum(part.num_tensor_bytes for part in snapshot.parts.values()) + _RESERVE_BYTES
        free_bytes = fs.num_free_bytes(self.directory)
        if free_bytes < needed_bytes:
            raise YaokiError(
                f"cannot save a checkpoint to {self.directory}: it needs {needed_bytes:,} bytes, "
                f"{free_bytes:,} are free",
                hint="free some space or keep fewer checkpoints, then resume the run",
            )


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
