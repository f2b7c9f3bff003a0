"""However the bytes come, each chunk has the digest of its own bytes."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from yaoki.checkpoint.chunks import (
    DIGEST_CHARACTERS,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    ChunkDigester,
    chunk_bytes_of,
    hexdigests_of,
    num_chunks,
)


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
    assert num_chunks(size_bytes, chunk_bytes) <= 8192 or chunk_bytes == MAX_CHUNK_BYTES
    assert num_chunks(size_bytes, chunk_bytes) > 4096 or chunk_bytes == MIN_CHUNK_BYTES


@pytest.mark.parametrize(("size_bytes", "chunk_bytes"), [(0, 4096), (32 << 20, 4096), ((32 << 20) + 1, 8192)])
def test_where_chunks_become_larger(size_bytes: int, chunk_bytes: int) -> None:
    assert chunk_bytes_of(size_bytes) == chunk_bytes
