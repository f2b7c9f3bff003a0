"""However the bytes come, each chunk has the digest of its own bytes."""

from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from yaoki.checkpoint import verify
from yaoki.checkpoint.chunks import (
    DIGEST_CHARACTERS,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    ChunkDigester,
    chunk_bytes_of,
    hexdigests_of,
    num_chunks,
)
from yaoki.checkpoint.manifest import FileEntry
from yaoki.checkpoint.verify import read_small_checked
from yaoki.errors import CorruptCheckpointError


@given(st.integers(1, 20), st.lists(st.binary(max_size=50), max_size=10))
def test_the_digests_are_those_of_the_chunks(chunk_bytes: int, pieces: list[bytes]) -> None:
    digester = ChunkDigester(chunk_bytes)
    for piece in pieces:
        digester.update(piece)
    whole = b"".join(pieces)
    chunks = [whole[at : at + chunk_bytes] for at in range(0, len(whole), chunk_bytes)] or [b""]
    assert digester.hexdigests() == "".join(xxhash.xxh3_128_hexdigest(chunk) for chunk in chunks)
    assert digester.hexdigests() == hexdigests_of(whole, chunk_bytes)
    assert len(chunks) == num_chunks(len(whole), chunk_bytes)
    assert len(digester.hexdigests()) == DIGEST_CHARACTERS * len(chunks)


@given(st.integers(0, 10**18))
def test_chunks_are_small_and_not_too_many(size_bytes: int) -> None:
    chunk_bytes = chunk_bytes_of(size_bytes)
    assert chunk_bytes.bit_count() == 1
    assert MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES
    number = num_chunks(size_bytes, chunk_bytes)
    assert number <= max(4096, chunk_bytes / 4) or chunk_bytes == MAX_CHUNK_BYTES
    assert number > max(2048, chunk_bytes / 16) or chunk_bytes == MIN_CHUNK_BYTES


@pytest.mark.parametrize(
    ("size_bytes", "chunk_bytes"),
    [(0, 4096), (16 << 20, 4096), ((16 << 20) + 1, 8192), (60 * 10**9, 512 << 10)],
)
def test_where_chunks_become_larger(size_bytes: int, chunk_bytes: int) -> None:
    assert chunk_bytes_of(size_bytes) == chunk_bytes


STATE = bytes(i * 7 % 251 for i in range(10_000))


def test_a_small_file_of_several_chunks_is_verified_in_all_of_them(tmp_path: Path) -> None:
    path, entry = tmp_path / "state.json", FileEntry.of("state.json", STATE)
    for place, said in [(0, "0 to 4096"), (4096, "4096 to 8192"), (9999, "8192 to 10000")]:
        path.write_bytes(STATE[:place] + b"?" + STATE[place + 1 :])
        with pytest.raises(CorruptCheckpointError, match=f"the xxh3-128 digest of its bytes {said} is "):
            read_small_checked(path, entry)
    path.write_bytes(STATE)
    assert read_small_checked(path, entry) == STATE


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (8192, "8192 to 10000 is missing"),
        (4097, "4096 to 8192 is "),
        (0, "0 to 4096 is "),
        (12288, "8192 to 10000"),
    ],
)
def test_a_small_file_that_changes_its_size_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int, said: str
) -> None:
    (tmp_path / "state.json").write_bytes((STATE * 2)[:size_bytes])
    monkeypatch.setattr(verify, "check_size", lambda path, entry: None)
    with pytest.raises(CorruptCheckpointError, match=said):
        read_small_checked(tmp_path / "state.json", FileEntry.of("state.json", STATE))


def test_a_file_that_goes_on_behind_its_last_whole_chunk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state.json").write_bytes(STATE[:8193])
    monkeypatch.setattr(verify, "check_size", lambda path, entry: None)
    with pytest.raises(CorruptCheckpointError, match="it has more than its 8192 bytes"):
        read_small_checked(tmp_path / "state.json", FileEntry.of("state.json", STATE[:8192]))
