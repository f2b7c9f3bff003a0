"""One part of the journal: an immutable Parquet file of finished rollouts of one step.

The digest in its name vouches for every byte, and its metadata says which run, step, policy and attempt it
is of. Knows nothing of what a step needs, nor of other parts.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from yaoki.journal.columns import PARQUET_OPTIONS, ROLLOUT_SCHEMA, rollout_table
from yaoki.journal.layout import SegmentName, parse_segment, unreadable
from yaoki.types import Rollout

FORMAT_VERSION = 2
SEGMENT_SCHEMA = pa.schema(
    [
        *ROLLOUT_SCHEMA,
        pa.field("engine", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
    ]
)

_MAX_BYTES = 4 << 30
"""No part is larger, in the file or in memory; a claim to be is not followed up."""


@dataclass(frozen=True, slots=True)
class JournalIdentity:
    """What every part that this process writes says of itself."""

    run_id: str
    config_digest: str
    attempt: int
    rank: int = 0
    engine: str = "transformers"
    """Which engine sampled; for eyes."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The metadata of a part."""

    run_id: str
    config_digest: str
    step: int
    policy_version: int
    attempt: int
    rank: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A part whose bytes are those that were written."""

    path: Path
    header: SegmentHeader
    table: pa.Table


class SegmentRejected(Exception):
    """What a file holds is not a part, and why; never leaves the journal."""


def encode_segment(
    rollouts: Sequence[Rollout], identity: JournalIdentity, number: int
) -> tuple[SegmentName, pa.Buffer]:
    """Name and bytes of a segment with these rollouts, all of one step and one policy version."""
    table = pa.Table.from_arrays(
        [
            *rollout_table(rollouts).columns,
            pa.array([identity.engine] * len(rollouts)),
            pa.array(np.full(len(rollouts), identity.attempt, np.int32)),
        ],
        schema=SEGMENT_SCHEMA.with_metadata(
            {
                b"yaoki.format_version": str(FORMAT_VERSION),
                # A run's id begins with a directory's name, which need not be valid Unicode.
                b"yaoki.run_id": identity.run_id.encode("utf-8", "surrogatepass"),
                b"yaoki.config_digest": identity.config_digest,
                b"yaoki.step": str(rollouts[0].key.step),
                b"yaoki.policy_version": str(rollouts[0].policy_version),
                b"yaoki.attempt": str(identity.attempt),
                b"yaoki.rank": str(identity.rank),
            }
        ),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=len(rollouts), **PARQUET_OPTIONS)
    data = sink.getvalue()
    return SegmentName(identity.rank, number, xxhash.xxh3_128_hexdigest(data)), data


def read_segment(path: Path, columns: Sequence[str] | None = None) -> Segment:
    """A part, verified; of its table only `columns`, if they are given.

    Raises PartRefused for anything that is wrong with what the file holds, FileNotFoundError, and YaokiError
    where the disk does not give it back.
    """
    name = parse_segment(path.name)
    assert name is not None
    data = _read(path)
    digest = xxhash.xxh3_128_hexdigest(data)
    if digest != name.digest:
        raise SegmentRejected(
            f"damaged: its {len(data)} bytes have the digest {digest}, not the one in its name"
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        header = _header(file.schema_arrow)
        _require_plausible(file.metadata)
        table = file.read(columns, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # the last for names that are no text
        raise SegmentRejected(f"not a readable Parquet file: {error}") from error
    if len(table) == 0:
        raise SegmentRejected("it holds no rollouts")
    return Segment(path, header, table)


def _read(path: Path) -> bytes:
    """The whole file; never more than a part can be, and nothing that is not a plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SegmentRejected("it is a symbolic link") from error
        raise unreadable(path, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SegmentRejected("it is not a plain file")
        if found.st_size > _MAX_BYTES:
            raise SegmentRejected(f"it has {found.st_size} bytes; no part has more than {_MAX_BYTES}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _require_plausible(claimed: pq.FileMetaData) -> None:
    """Nothing is decoded that says of itself that it would not fit.

    Columns are not asked: on a forged footer, pyarrow's accessors for them end the process.
    """
    num_bytes = sum(claimed.row_group(index).total_byte_size for index in range(claimed.num_row_groups))
    if not 0 <= num_bytes <= _MAX_BYTES or not 0 <= claimed.num_rows <= _MAX_BYTES:
        raise SegmentRejected(f"it claims {claimed.num_rows} rows in {num_bytes} bytes")


def _header(schema: pa.Schema) -> SegmentHeader:
    said = {
        key.decode("ascii", "replace").removeprefix("yaoki."): value
        for key, value in (schema.metadata or {}).items()
    }
    version = said.get("format_version", b"unknown").decode("ascii", "replace")
    if version != str(FORMAT_VERSION):
        raise SegmentRejected(f"it is of format {version}, not {FORMAT_VERSION}")
    if not schema.equals(SEGMENT_SCHEMA):
        there, wanted = set(map(str, schema)), set(map(str, SEGMENT_SCHEMA))
        missing, surplus = sorted(wanted - there), sorted(there - wanted)
        raise SegmentRejected(f"its columns are not a part's: missing {missing}, surplus {surplus}")
    try:
        return SegmentHeader(
            said["run_id"].decode("utf-8", "surrogatepass"),
            said["config_digest"].decode("ascii"),
            *(int(said[name]) for name in ("step", "policy_version", "attempt", "rank")),
        )
    except (KeyError, ValueError) as error:
        raise SegmentRejected(f"its metadata is incomplete: {error}") from error
