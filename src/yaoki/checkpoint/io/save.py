"""Writes one checkpoint, together with all ranks, to a directory that does not have its final name yet.

Every rank writes its files and makes them durable; rank 0 gathers their receipts and writes the manifest.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.direct_io import DiskWriter
from yaoki.checkpoint.io.frozen import FrozenTensors, written_to
from yaoki.checkpoint.io.snapshot import Snapshot
from yaoki.checkpoint.io.writer import (
    EarlierFiles,
    PartFile,
    Receipt,
    merged,
    plan,
    state_of_rank,
    write_parts,
    write_state,
)
from yaoki.checkpoint.layout import MANIFEST
from yaoki.checkpoint.manifest import FORMAT_VERSION, Manifest, PartEntry, parse_manifest
from yaoki.errors import YaokiError
from yaoki.ranks.agree import all_gather_json, run_on_all
from yaoki.ranks.world import Channel
from yaoki.strict_json import JSON, FormatError, decode, encode
from yaoki.types import Poll

_RESERVE_BYTES = 16 << 20
"""Space for JSON, headers and file-system metadata, in addition to the tensors."""


@dataclass(frozen=True, slots=True)
class SaveInfo:
    """Fields of the manifest that describe the run; see `Manifest`."""

    run_id: str
    attempt: int
    parent: str | None
    config_digest: str
    dataset_digest: str
    environment: Mapping[str, bool | int | float | str | None]


@dataclass(frozen=True, slots=True)
class Saving:
    """One save in progress."""

    ranks: Channel
    path: Path
    """The final name of the checkpoint, for messages."""
    unfinished: Path
    """The directory to write to."""
    snapshot: Snapshot
    earlier: EarlierFiles | None

    def write(
        self,
        frozen: FrozenTensors,
        blocks: Sequence[memoryview],
        poll: Poll | None,
        make_room: Callable[[], None],
    ) -> tuple[Receipt, ...]:
        """Write every file except the manifest, durably; returns the receipts of all ranks, in rank order.

        `make_room` is called first, on rank 0 only.
        """
        files, of_rank = run_on_all(self.ranks, partial(self._prepare, make_room))
        needed_bytes = all_gather_json(self.ranks, self._needed_bytes(files))
        of_ranks = all_gather_json(self.ranks, of_rank)
        run_on_all(self.ranks, partial(self._require_space, sum(needed_bytes)))
        receipts = run_on_all(self.ranks, partial(self._write, files, of_ranks, frozen, blocks, poll))
        if self.ranks.size == 1:  # there may be thousands of tensors to encode
            return receipts
        messages = self.ranks.gather(encode(receipts))
        return sum((decode(tuple[Receipt, ...], message) for message in messages), ())

    def finish(
        self, receipts: Sequence[Receipt], step: int, info: SaveInfo, give_name: Callable[[], None]
    ) -> tuple[Manifest, bytes]:
        """Write the manifest, durably, then call `give_name`, both on rank 0 only."""
        made = run_on_all(self.ranks, partial(self._finish, receipts, step, info, give_name))
        (data, *_) = self.ranks.gather(b"" if made is None else made[1])
        return made or (parse_manifest(data, self.path), data)

    def _prepare(self, make_room: Callable[[], None]) -> tuple[list[PartFile], dict[str, JSON]]:
        with self._explained():
            if self.ranks.rank == 0:
                make_room()
            return plan(self.snapshot, self.ranks.rank, self.ranks.size), state_of_rank(self.snapshot)

    def _write(
        self,
        files: list[PartFile],
        of_ranks: Sequence[JSON],
        frozen: FrozenTensors,
        blocks: Sequence[memoryview],
        poll: Poll | None,
    ) -> tuple[Receipt, ...]:
        with self._explained():
            pieces = {file.name: file.pieces() for file in files}
            frozen.begin(pieces, self._require_untouched)  # from here on `release` can return
            fs.make_directory(self.unfinished)
            state = [write_state(self.unfinished, self.snapshot, of_ranks)] if self.ranks.rank == 0 else []
            with DiskWriter(blocks, poll) as disk:
                return (*write_parts(self.unfinished, files, frozen, disk, self.earlier), *state)

    def _finish(
        self, receipts: Sequence[Receipt], step: int, info: SaveInfo, give_name: Callable[[], None]
    ) -> tuple[Manifest, bytes] | None:
        if self.ranks.rank != 0:
            return None
        with self._explained():
            manifest = self._manifest(receipts, step, info)
            data = manifest.to_bytes()
            fs.write_file_durably(self.unfinished / MANIFEST, data)
            fs.fsync_directory(self.unfinished)
            give_name()
            return manifest, data

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors into a YaokiError with a hint."""
        try:
            yield
        except OSError as error:
            raise YaokiError(
                f"cannot save {self.path}: {error.filename}: {error.strerror}",
                hint="earlier checkpoints are untouched; check the disk, then resume the run",
            ) from error
        except FormatError as error:
            raise YaokiError(f"cannot save {self.path}: {error}") from error

    def _needed_bytes(self, files: Sequence[PartFile]) -> int:
        """Size of this rank's files, without those that will probably be links."""
        return sum(
            file.size_bytes for file in files if self.earlier is None or self.earlier.find(file) is None
        )

    def _require_space(self, tensor_bytes: int) -> None:
        needed_bytes = _RESERVE_BYTES + tensor_bytes
        with self._explained():
            free_bytes = fs.num_free_bytes(self.path.parent)
        if free_bytes < needed_bytes:
            raise YaokiError(
                f"cannot save a checkpoint to {self.path.parent}: it needs {needed_bytes:,} bytes, "
                f"{free_bytes:,} are free",
                hint="free some space or keep fewer checkpoints, then resume the run",
            )

    def _require_untouched(self) -> None:
        """YaokiError if a tensor of the snapshot was written to; `FrozenTensors` detects later writes."""
        for name, part in self.snapshot.parts.items():
            if part.written_to is not None:
                raise written_to(f"{name}: {part.written_to}")

    def _manifest(self, receipts: Sequence[Receipt], step: int, info: SaveInfo) -> Manifest:
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
            world_size=self.ranks.size,
            parts=tuple(
                PartEntry(name, part.scope, has_json=part.json is not None)
                for name, part in self.snapshot.parts.items()
            ),
            files=tuple(receipt.file for receipt in receipts),
            tensors=merged(entry for receipt in receipts for entry in receipt.tensors),
        )
