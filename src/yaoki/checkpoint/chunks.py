"""Digests of files by chunks, so that a reader of a few rows can verify these alone. No torch.

A module of its own, because the manifest, the writer, the verifier and the mirror all share it.
"""

import xxhash

MIN_CHUNK_BYTES = 4 << 10
"""One page, the smallest unit of disk I/O."""
MAX_CHUNK_BYTES = 8 << 20
DIGEST_CHARACTERS = 32
"""Length of a hexadecimal xxh3-128 digest."""


def chunk_bytes_of(part_bytes: int) -> int:
    """Chunk size for a new file: a power of two that grows with the square root of the part's size.

    Small, because a rank reads its rows of hundreds of tensors from a file and verifies whole chunks; but
    large enough that the digests stay small: a part of 4 GB has 30,000.

    Args:
        part_bytes: approximate size of all files of the part.
    """
    chunk_bytes = MIN_CHUNK_BYTES
    while chunk_bytes < MAX_CHUNK_BYTES and chunk_bytes * max(4096, chunk_bytes // 4) < part_bytes:
        chunk_bytes *= 2
    return chunk_bytes


def num_chunks(size_bytes: int, chunk_bytes: int) -> int:
    """Number of chunks; the last may be shorter, and an empty file has one empty chunk."""
    return max(1, -(-size_bytes // chunk_bytes))


class ChunkDigester:
    """Digests a stream of bytes, which may arrive in pieces of any size."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._whole = bytearray()
        """Digests of the complete chunks."""
        self._open = xxhash.xxh3_128()
        self._num_open_bytes = 0

    def update(self, data: memoryview | bytes) -> None:
        """Digest the next bytes."""
        left = memoryview(data)
        while left:
            given = left[: self._chunk_bytes - self._num_open_bytes]
            left = left[len(given) :]
            if len(given) == self._chunk_bytes:  # the usual case: one call per chunk
                self._whole += xxhash.xxh3_128_digest(given)
                continue
            self._open.update(given)
            self._num_open_bytes += len(given)
            if self._num_open_bytes == self._chunk_bytes:
                self._whole += self._open.digest()
                self._open, self._num_open_bytes = xxhash.xxh3_128(), 0

    def hexdigests(self) -> str:
        """The xxh3-128 digests of all chunks so far, concatenated."""
        is_open = self._num_open_bytes or not self._whole
        return (self._whole + self._open.digest() if is_open else self._whole).hex()


def hexdigests_of(data: bytes, chunk_bytes: int) -> str:
    """The xxh3-128 digests of all chunks, concatenated."""
    digester = ChunkDigester(chunk_bytes)
    digester.update(data)
    return digester.hexdigests()
