"""A segment of the journal: an immutable Parquet file of finished rollouts of one step.

The digest in its name covers every byte; its metadata says of which run, step, policy and attempt it is.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from yaoki.journal.columns import ROLLOUT_SCHEMA, rollout_table, to_parquet
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
"""Upper limit of a segment's size, in the file and in memory; whatever claims to be larger is not read."""


@dataclass(frozen=True, slots=True)
class JournalIdentity:
    """Whose rollouts this process writes; recorded in every segment."""

    run_id: str
    config_digest: str
    attempt: int
    rank: int = 0
    engine: str = "transformers"
    """Which engine sampled; informational."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The metadata of a segment, each under `yaoki.NAME` as text."""

    run_id: str
    config_digest: str
    step: int
    policy_version: int
    attempt: int
    rank: int

    def to_metadata(self) -> dict[str, bytes]:
        """A run's id begins with the name of a directory, which need not be valid Unicode."""
        facts = {"format_version": FORMAT_VERSION, **asdict(self)}
        return {f"yaoki.{name}": str(value).encode("utf-8", "surrogatepass") for name, value in facts.items()}

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> "SegmentHeader":
        """The header in a file's schema, which must be SEGMENT_SCHEMA; UnusableSegment if it is not."""
        metadata = {key.decode("ascii", "replace"): value for key, value in (schema.metadata or {}).items()}
        version = metadata.get("yaoki.format_version", b"unknown").decode("ascii", "replace")
        if version != str(FORMAT_VERSION):
            raise UnusableSegment(f"it is of format {version}, not {FORMAT_VERSION}")
        if not schema.equals(SEGMENT_SCHEMA):
            found, expected = set(map(str, schema)), set(map(str, SEGMENT_SCHEMA))
            missing, surplus = sorted(expected - found), sorted(found - expected)
            raise UnusableSegment(
                f"its columns are not those of a segment: missing {missing}, surplus {surplus}"
            )

        def text(name: str) -> str:
            return str(metadata[f"yaoki.{name}"], "utf-8", "surrogatepass")

        try:
            numbers = (int(text(name)) for name in ("step", "policy_version", "attempt", "rank"))
            return cls(text("run_id"), text("config_digest"), *numbers)
        except (KeyError, ValueError) as error:
            raise UnusableSegment(f"its metadata is incomplete: {error}") from error


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment whose bytes were verified."""

    path: Path
    header: SegmentHeader
    table: pa.Table


class UnusableSegment(Exception):
    """The content of a file cannot be used, and why; never leaves the journal."""


def encode_segment(
    rollouts: Sequence[Rollout], identity: JournalIdentity, number: int
) -> tuple[SegmentName, pa.Buffer]:
    """Name and bytes of a segment with these rollouts, all of one step and one policy version."""
    first = rollouts[0]
    header = SegmentHeader(
        identity.run_id,
        identity.config_digest,
        first.key.step,
        first.policy_version,
        identity.attempt,
        identity.rank,
    )
    columns = [
        *rollout_table(rollouts).columns,
        pa.array([identity.engine] * len(rollouts), pa.string()),
        pa.array([identity.attempt] * len(rollouts), pa.int32()),
    ]
    data = to_parquet(
        pa.Table.from_arrays(columns, schema=SEGMENT_SCHEMA.with_metadata(header.to_metadata()))
    )
    return SegmentName(identity.rank, number, xxhash.xxh3_128_hexdigest(data)), data


def read_segment(path: Path, columns: Sequence[str] | None = None) -> Segment:
    """Read and verify a segment; of its table only `columns`, if they are given.

    Raises:
        UnusableSegment: anything that is wrong with the content of the file.
        FileNotFoundError: there is no such file.
        YaokiError: the disk does not return the content.
    """
    name = parse_segment(path.name)
    assert name is not None
    data = _read(path)
    digest = xxhash.xxh3_128_hexdigest(data)
    if digest != name.digest:
        raise UnusableSegment(
            f"damaged: its {len(data)} bytes have the digest {digest}, not the one in its name"
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        header = SegmentHeader.from_schema(file.schema_arrow)
        _require_plausible(file.metadata)
        table = file.read(columns, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError for names that are not Unicode
        raise UnusableSegment(f"not a readable Parquet file: {error}") from error
    if len(table) == 0:
        raise UnusableSegment("it holds no rollouts")
    return Segment(path, header, table)


def _read(path: Path) -> bytes:
    """The whole content of a regular file of at most _MAX_BYTES."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UnusableSegment("it is not a regular file")
            if found.st_size > _MAX_BYTES:
                raise UnusableSegment(f"it has {found.st_size} bytes; no segment has more than {_MAX_BYTES}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(found.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableSegment("it is a symbolic link") from error
        raise unreadable(path, error) from error


def _require_plausible(claimed: pq.FileMetaData) -> None:
    """Decode nothing that claims not to fit into memory.

    Columns are not asked: on a forged footer, pyarrow's accessors for them end the process.
    """
    num_bytes = sum(claimed.row_group(index).total_byte_size for index in range(claimed.num_row_groups))
    if not 0 <= num_bytes <= _MAX_BYTES or not 0 <= claimed.num_rows <= _MAX_BYTES:
        raise UnusableSegment(f"it claims {claimed.num_rows} rows in {num_bytes} bytes")
