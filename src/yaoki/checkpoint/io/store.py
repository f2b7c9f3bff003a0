"""Saves checkpoints: commits them durably, then reads them back from the disk.

Write order: files go to `step-N.tmp/` and are made durable, the manifest last; then one rename gives the
directory its name, so a crash at any time leaves either nothing new or all of it. After that everything is
read back; until then the checkpoint does not count for `prune`, so nothing older is removed.

If `step-N` exists already (it is damaged, or saved again after a resume), it is moved aside to
`step-N.replaced-K` just before that rename, and removed only by `prune`. A crash between the two renames
loses nothing, because replaced checkpoints are candidates too.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint
from yaoki.checkpoint.direct_io import new_blocks
from yaoki.checkpoint.io.frozen import FrozenTensors, pin
from yaoki.checkpoint.io.save import SaveInfo, Saving
from yaoki.checkpoint.io.snapshot import Snapshot
from yaoki.checkpoint.io.writer import EarlierFiles
from yaoki.checkpoint.layout import Kind, directory_name, parse_directory, replaced_name, unfinished_name
from yaoki.checkpoint.manifest import Manifest
from yaoki.checkpoint.verify import read_back
from yaoki.errors import CorruptCheckpointError, YaokiError
from yaoki.ranks.agree import run_on_all
from yaoki.ranks.world import Channel
from yaoki.types import Poll


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A committed checkpoint."""

    path: Path
    step: int
    size_bytes: int
    duration_s: float
    """Time until it was durable."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint that is durable, but was not read back yet."""

    saved: SavedCheckpoint
    manifest: Manifest
    manifest_bytes: bytes


class CheckpointStore(Catalog):
    """A run's `checkpoints/` directory, for the only attempt that may write to it, one save at a time.

    Every rank has a store, and all make the same calls.
    """

    def __init__(
        self, directory: Path, verified: ValidCheckpoint | None = None, ranks: Channel | None = None
    ) -> None:
        """
        Args:
            verified: a checkpoint that the ranks have just read in full. It counts as verified when pruning,
                and files of unchanged parts are linked to it.
            ranks: the channel between the ranks that save together; None for this process alone.
        """
        super().__init__(directory)
        if verified is not None:
            self._verified.add(verified.path)
        self._newest_verified = verified
        self._ranks = Channel(0, 1) if ranks is None else ranks

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prunes."""
        return self._ranks.rank == 0

    def save(self, snapshot: Snapshot, *, step: int, info: SaveInfo) -> SavedCheckpoint:
        """Commit and read back; then the checkpoint is durable and verified.

        Raises:
            YaokiError: see `commit` and `read_back`.
        """
        committed = self.commit(snapshot, FrozenTensors(), step=step, info=info)
        self.read_back(committed)
        return committed.saved

    def commit(
        self,
        snapshot: Snapshot,
        frozen: FrozenTensors,
        *,
        step: int,
        info: SaveInfo,
        poll: Poll | None = None,
    ) -> Committed:
        """Write the checkpoint and give it its name; then it is durable.

        Args:
            frozen: reads the tensors of the snapshot; the caller closes it.
            poll: called between blocks; what it raises ends the save.

        Raises:
            YaokiError: too little space, an I/O error, or a value that cannot be saved. Earlier checkpoints
                are untouched, and the unfinished one is removed if possible.
        """
        start_s = time.monotonic()
        path = self.directory / directory_name(step)
        unfinished = self.directory / unfinished_name(step)
        saving = Saving(self._ranks, path, unfinished, snapshot, self._earlier_files())
        try:
            receipts = saving.write(frozen, self._blocks, poll, self._make_room)
            give_name = partial(self._give_name, unfinished, path, step)
            manifest, manifest_bytes = saving.finish(receipts, step, info, give_name)
        finally:
            if self._ranks.rank == 0 and unfinished.exists():
                with contextlib.suppress(OSError):
                    fs.remove_tree(unfinished)
        saved = SavedCheckpoint(path, step, manifest.size_bytes, time.monotonic() - start_s)
        return Committed(saved, manifest, manifest_bytes)

    def read_back(self, committed: Committed, poll: Poll | None = None) -> None:
        """Read a checkpoint that was just committed back from the disk; then it counts for `prune`.

        Raises:
            YaokiError: it differs from what was written. It keeps its name, and a resume passes it over.
        """
        path, ranks = committed.saved.path, self._ranks
        own = committed.manifest.files_of(ranks.rank)
        read = partial(read_back, path, committed.manifest_bytes, own, self._blocks, poll)
        try:
            run_on_all(ranks, read)
        except CorruptCheckpointError as error:
            # Checkpoints that were verified earlier are on the same disk, or share the damaged file.
            self._verified.clear()
            self._newest_verified = None
            raise YaokiError(
                f"{path} does not read back as it was written: {error.message}",
                hint="the disk or the memory is failing; a resume will use an earlier checkpoint",
            ) from error
        self._verified.add(path)
        self._newest_verified = ValidCheckpoint(path, committed.manifest)

    @cached_property
    def _blocks(self) -> list[memoryview]:
        """Kept between saves, because memory is slow when it is touched for the first time."""
        blocks = new_blocks()
        pin(blocks)
        return blocks

    def _earlier_files(self) -> EarlierFiles | None:
        newest = self._newest_verified
        if newest is None:
            return None
        return EarlierFiles(newest.path, {file.name: file for file in newest.manifest.files})

    def _make_room(self) -> None:
        fs.make_directory(self.directory)
        self.remove_leftovers()

    def _give_name(self, unfinished: Path, path: Path, step: int) -> None:
        self._verified.discard(path)
        if self._newest_verified is not None and self._newest_verified.path == path:
            self._newest_verified = None  # its name is given to another one
        if os.path.lexists(path):
            fs.replace_durably(path, self._free_replaced_path(step))
        fs.replace_durably(unfinished, path)

    def _free_replaced_path(self, step: int) -> Path:
        generations = [candidate.generation for candidate in self.candidates() if candidate.step == step]
        return self.directory / replaced_name(step, max(generations) + 1)

    def remove_leftovers(self) -> None:
        """Remove unfinished and half-removed checkpoints of dead attempts."""
        for path in sorted(self.directory.glob(f"*{fs.TRASH_SUFFIX}")):
            if parse_directory(path.with_name(path.name.removesuffix(fs.TRASH_SUFFIX))) is not None:
                fs.remove_tree(path)
        for candidate in self.candidates():
            if candidate.kind is Kind.UNFINISHED:
                fs.remove_tree(candidate.path)
