"""Segments: what goes in comes out to the last bit, or is rejected with the reason."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from yaoki.errors import YaokiError
from yaoki.journal import segments
from yaoki.journal.columns import RolloutRows, pack, unpack
from yaoki.journal.layout import SegmentName, parse_segment
from yaoki.journal.segments import (
    JournalIdentity,
    SegmentHeader,
    UnusableSegment,
    encode_segment,
    read_segment,
)
from yaoki.types import Prompt, Rollout

from .samples import KEYS, STEP, VERSION, batch, same_bits, steps

IDENTITY = JournalIdentity("run-1", "c0ffee", 3, 2, "vllm")
ROLLOUTS = batch(KEYS[:2])


def write(directory: Path, data: bytes, *, honest: bool = True, name: SegmentName | None = None) -> Path:
    """A file with these bytes and the name that vouches for them (or, not honest, for others)."""
    digest = xxhash.xxh3_128_hexdigest(data) if honest else "0" * 32
    path = directory / str(name or SegmentName(2, 1, digest))
    path.write_bytes(data)
    return path


def encoded(
    rollouts: list[Rollout] = ROLLOUTS, identity: JournalIdentity = IDENTITY
) -> tuple[SegmentName, bytes]:
    name, data = encode_segment(rollouts, identity, 1)
    return name, data.to_pybytes()


@given(steps())
@settings(max_examples=60)
def test_everything_comes_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, step: tuple[list[Prompt], list[Rollout]]
) -> None:
    rollouts = step[1]
    directory = tmp_path_factory.mktemp("segment")
    name, data = encoded(rollouts)
    segment = read_segment(write(directory, data, name=name))
    rows = RolloutRows(segment.table)
    assert len(rows) == len(rollouts)
    for row, rollout in enumerate(rollouts):
        assert rows.keys[row] == rollout.key
        assert rows.task_uids[row] == rollout.prompt.task.uid
        assert tuple(rows.prompt_ids[row].tolist()) == rollout.prompt.token_ids
        assert same_bits(rows.judged(row), rollout.judged)


@given(steps())
@settings(max_examples=30)
def test_ranks_exchange_rollouts_to_the_last_bit(step: tuple[list[Prompt], list[Rollout]]) -> None:
    received = unpack(pack(step[1]))
    assert list(received) == [rollout.key for rollout in step[1]]
    assert all(same_bits(received[rollout.key], rollout.judged) for rollout in step[1])


@given(steps())
@settings(max_examples=30)
def test_other_tools_read_what_was_sampled(step: tuple[list[Prompt], list[Rollout]]) -> None:
    table = pq.read_table(pa.BufferReader(encoded(step[1])[1]))
    table.validate(full=True)
    for row, rollout in zip(table.to_pylist(), step[1], strict=True):
        assert row["text"] == rollout.completion.text
        assert row["reward"] == rollout.verdict.reward
        assert tuple(row["not_sampled"]) == rollout.completion.not_sampled


def test_a_segment_says_whose_it_is(tmp_path: Path) -> None:
    name, data = encoded()
    assert str(name).startswith("rank-002-part-00001-")
    segment = read_segment(write(tmp_path, data, name=name))
    assert segment.header == SegmentHeader("run-1", "c0ffee", STEP, VERSION, attempt=3, rank=2)
    for column, value in (("step", STEP), ("policy_version", VERSION), ("attempt", 3), ("engine", "vllm")):
        assert segment.table[column].to_pylist() == [value] * 2


def test_a_run_may_have_any_name(tmp_path: Path) -> None:
    """It has the name of its directory, which need not be valid Unicode."""
    run_id = os.fsdecode("l\u00e4uf \U0001f3c3".encode() + b"\xff") + "-1234"
    name, data = encoded(identity=JournalIdentity(run_id, "c0ffee", 1))
    assert read_segment(write(tmp_path, data, name=name)).header.run_id == run_id


@given(st.text(alphabet="0123456789abcdef-rankpt.quemk", max_size=90) | st.text())
def test_names_of_segments_come_back(name: str) -> None:
    parsed = parse_segment(name)
    assert parsed is None or str(parse_segment(str(parsed))) == str(parsed)


@given(st.integers(0, 10**8), st.integers(0, 10**8), st.sampled_from(["", ".tmp", ".2"]))
def test_names_are_parsed(rank: int, number: int, suffix: str) -> None:
    name = SegmentName(rank, number, "0123456789abcdef" * 2, suffix)
    assert parse_segment(str(name)) == name


def test_every_byte_counts(tmp_path: Path) -> None:
    name, data = encoded(batch(KEYS[:1], num_tokens=1))
    path = write(tmp_path, data, name=name)
    read_segment(path)
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
            with pytest.raises(UnusableSegment, match="damaged"):
                read_segment(path)
            os.pwrite(file.fileno(), bytes([byte]), place)
    read_segment(path)


def test_truncated_at_any_length(tmp_path: Path) -> None:
    name, data = encoded()
    path = write(tmp_path, data, name=name)
    for length in reversed([*range(0, len(data), 7), len(data) - 1]):
        os.truncate(path, length)
        with pytest.raises(UnusableSegment, match=f"damaged: its {length} bytes"):
            read_segment(path)


def test_bytes_after_the_end(tmp_path: Path) -> None:
    name, data = encoded()
    with pytest.raises(UnusableSegment, match="damaged"):
        read_segment(write(tmp_path, data + b"\0", name=name))


@pytest.mark.parametrize("seed", range(4))
def test_a_forged_digest_gets_no_further_than_a_rejection(tmp_path: Path, seed: int) -> None:
    """Whoever makes a segment can also name it; nothing in it may break the reader."""
    randomness = random.Random(seed)
    data = encoded()[1]
    num_rejected = 0
    for _ in range(150):
        forged = bytearray(data)
        for _ in range(randomness.choice([1, 1, 3, 30])):
            forged[randomness.randrange(len(forged))] = randomness.randrange(256)
        path = write(tmp_path, bytes(forged))
        try:
            RolloutRows(read_segment(path).table)
        except (UnusableSegment, ValueError):
            num_rejected += 1
        path.unlink()
    assert num_rejected > 75


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" + b"\xff" * 8 + b"PAR1", b"x" * 100, b"PAR1\0\0\0\0PAR1"]
)
def test_no_parquet(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnusableSegment, match="not a readable Parquet file"):
        read_segment(write(tmp_path, data))


@pytest.mark.parametrize("claim", [0x7FFFFFFF, 0xFFFFFFFF, 10_000_000])
def test_a_footer_larger_than_the_file(tmp_path: Path, claim: int) -> None:
    data = encoded()[1]
    forged = data[:-8] + claim.to_bytes(4, "little") + b"PAR1"
    with pytest.raises(UnusableSegment, match="not a readable Parquet file"):
        read_segment(write(tmp_path, forged))


def table() -> pa.Table:
    return pq.read_table(pa.BufferReader(encoded()[1]))


def write_table(directory: Path, changed: pa.Table) -> Path:
    sink = pa.BufferOutputStream()
    pq.write_table(changed, sink)
    return write(directory, sink.getvalue().to_pybytes())


@pytest.mark.parametrize("column", segments.SEGMENT_SCHEMA.names)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(
        UnusableSegment, match=rf"columns are not those of a segment: missing \['pyarrow.Field<{column}:"
    ):
        read_segment(write_table(tmp_path, table().drop_columns([column])))


def test_a_surplus_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableSegment, match=r"surplus \['pyarrow.Field<note: string"):
        read_segment(write_table(tmp_path, table().append_column("note", pa.array(["a", "b"]))))


def test_a_column_of_another_type_or_with_nulls_is_rejected(tmp_path: Path) -> None:
    narrow = table().set_column(0, "step", pa.array([STEP, STEP], pa.int32()))
    with pytest.raises(UnusableSegment, match="step: int32"):
        read_segment(write_table(tmp_path, narrow))
    empty = table().set_column(0, "step", pa.array([STEP, None], pa.int64()))
    with pytest.raises(UnusableSegment, match="step: int64"):
        read_segment(write_table(tmp_path, empty))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format_version", "1", "it is of format 1, not 2"),
        ("format_version", "3", "it is of format 3, not 2"),
        ("format_version", None, "it is of format unknown"),
        ("run_id", None, "incomplete: 'yaoki.run_id'"),
        ("attempt", None, "incomplete: 'yaoki.attempt'"),
        ("run_id", b"\xff", "incomplete: 'utf-8' codec"),
        ("step", "many", "incomplete: invalid literal"),
        ("policy_version", "9" * 10_000, "incomplete: Exceeds the limit"),
    ],
)
def test_metadata_that_says_too_little(
    tmp_path: Path, key: str, value: str | bytes | None, reason: str
) -> None:
    metadata: dict[bytes, Any] = {**table().schema.metadata}
    metadata.pop(f"yaoki.{key}".encode())
    if value is not None:
        metadata[f"yaoki.{key}".encode()] = value
    with pytest.raises(UnusableSegment, match=reason):
        read_segment(write_table(tmp_path, table().replace_schema_metadata(metadata)))


def test_a_segment_without_rollouts_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UnusableSegment, match="no rollouts"):
        read_segment(write_table(tmp_path, table().slice(0, 0)))


def with_column(name: str, values: list[Any]) -> pa.Table:
    field = segments.SEGMENT_SCHEMA.field(name)
    return table().set_column(
        segments.SEGMENT_SCHEMA.get_field_index(name), field, pa.array(values, field.type)
    )


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("reward", [1.0, float("-inf")], "a reward is -inf"),
        ("reward", [float("nan"), 1.0], "a reward is nan"),
        ("not_sampled", [[], [3]], r"not_sampled is \[3\] of 3 tokens"),
        ("not_sampled", [[-1], []], r"not_sampled is \[-1\] of 3 tokens"),
        ("not_sampled", [[2, 1], []], r"not_sampled is \[2, 1\] of 3 tokens"),
        ("not_sampled", [[1, 1], []], r"not_sampled is \[1, 1\] of 3 tokens"),
        ("verdict", ["correct", "splendid"], "'splendid'"),
        ("finish_reason", ["eos", ""], "'' is not a valid"),
        ("logprobs", [[-1.0], [-1.0, -1.0, -1.0]], "more or fewer log-probabilities"),
        ("sample", [1, 1], "there twice"),
    ],
)
def test_rows_that_no_rollout_has(tmp_path: Path, column: str, values: list[Any], reason: str) -> None:
    changed = with_column(column, values)
    if column == "sample":
        changed = changed.set_column(1, changed.schema.field("prompt"), pa.array([0, 0], pa.int32()))
    segment = read_segment(write_table(tmp_path, changed))
    with pytest.raises(ValueError, match=reason):
        RolloutRows(segment.table)


def test_text_that_is_not_unicode_is_rejected(tmp_path: Path) -> None:
    bad = pa.array([b"\xff\xfe", b"ok"], pa.binary()).view(pa.string())
    place = segments.SEGMENT_SCHEMA.get_field_index("text")
    changed = table().set_column(place, segments.SEGMENT_SCHEMA.field(place), bad)
    with pytest.raises(UnusableSegment, match=r"not a readable Parquet file: .*Invalid UTF8"):
        read_segment(write_table(tmp_path, changed))


def test_a_file_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"", honest=False)
    os.truncate(path, 10 << 40)
    with pytest.raises(UnusableSegment, match=f"it has {10 << 40} bytes; no segment has more than"):
        read_segment(path)


def test_a_table_that_claims_to_be_huge_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes that would be eight million bytes."""
    zeros = pa.array(np.zeros(1 << 20, np.int64))
    lists = pa.ListArray.from_arrays(pa.array([0, 1 << 19, 1 << 20], pa.int32()), zeros)
    place = segments.SEGMENT_SCHEMA.get_field_index("token_ids")
    changed = table().set_column(
        place, segments.SEGMENT_SCHEMA.field(place), lists.cast(table()["token_ids"].type)
    )
    sink = pa.BufferOutputStream()
    pq.write_table(changed, sink, use_dictionary=False, compression="zstd")
    path = write(tmp_path, sink.getvalue().to_pybytes())
    assert path.stat().st_size < 1 << 16
    assert len(read_segment(path).table) == 2
    monkeypatch.setattr(segments, "_MAX_BYTES", 1 << 22)
    with pytest.raises(UnusableSegment, match="it claims 2 rows in 8"):
        read_segment(path)


def test_what_is_not_a_regular_file_is_rejected(tmp_path: Path) -> None:
    name, data = encoded()
    (tmp_path / "elsewhere").write_bytes(data)
    path = tmp_path / str(name)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnusableSegment, match="symbolic link"):
        read_segment(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnusableSegment, match="not a regular file"):
        read_segment(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UnusableSegment, match="not a regular file"):
        read_segment(path)


class _BrokenDisk:
    """Stands in for `os`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fstat(self, descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_disk_that_does_not_answer_is_no_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment must not be quarantined because it could not be read just now."""
    name, data = encoded()
    path = write(tmp_path, data, name=name)
    monkeypatch.setattr(segments, "os", _BrokenDisk())
    with pytest.raises(YaokiError, match=r"rank-002.* cannot be read: Input/output error") as caught:
        read_segment(path)
    assert caught.value.hint


def test_a_segment_that_has_gone_in_the_meantime(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_segment(tmp_path / str(SegmentName(0, 1, "0" * 32)))


def test_pages_bear_checksums(tmp_path: Path) -> None:
    """A reader that ignores the name still finds a flipped bit, by the checksum of the page."""
    data = bytearray(encoded(batch(KEYS, num_tokens=50))[1])
    metadata = pq.read_metadata(pa.BufferReader(bytes(data)))
    chunks = [metadata.row_group(0).column(index) for index in range(metadata.num_columns)]
    logprobs = next(chunk for chunk in chunks if chunk.path_in_schema == "logprobs.list.element")
    data[logprobs.data_page_offset + logprobs.total_compressed_size - 3] ^= 1
    with pytest.raises(UnusableSegment, match="CRC"):
        read_segment(write(tmp_path, bytes(data)))
