"""Files are digested chunk by chunk, so that whoever reads a part of one can verify that part. No torch.

It knows nothing of what the bytes mean.
"""

import xxhash

MIN_CHUNK_BYTES = 4 << 10
"""A page: with less a disk does not deal."""
MAX_CHUNK_BYTES = 8 << 20
DIGEST_CHARACTERS = 32
"""Of xxh3-128, hexadecimal."""


def chunk_bytes_of(part_bytes: int) -> int:
    """How large the chunks of a new file are: a power of two that grows with the root of its part's size.

    Small, because a rank reads its rows of hundreds of tensors in a file, and verifies whole chunks; not so
    small that the digests of a large part would weigh anything. Of a part of 4 GB it has 30,000.

    Args:
        part_bytes: of all files among which a part is spread, roughly.
    """
    chunk_bytes = MIN_CHUNK_BYTES
    while chunk_bytes < MAX_CHUNK_BYTES and chunk_bytes * max(4096, chunk_bytes // 4) < part_bytes:
        chunk_bytes *= 2
    return chunk_bytes


def num_chunks(size_bytes: int, chunk_bytes: int) -> int:
    """The last one may be shorter; an empty file has one, which is empty."""
    return max(1, -(-size_bytes // chunk_bytes))


class ChunkDigester:
    """Digests bytes as they come, however they are cut."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._whole = bytearray()
        """The digests of the chunks that are complete."""
        self._open = xxhash.xxh3_128()
        self._num_open_bytes = 0

    def update(self, data: memoryview | bytes) -> None:
        """The next bytes."""
        left = memoryview(data)
        while left:
            given = left[: self._chunk_bytes - self._num_open_bytes]
            left = left[len(given) :]
            if len(given) == self._chunk_bytes:  # nearly always: one call for all of it
                self._whole += xxhash.xxh3_128_digest(given)
                continue
            self._open.update(given)
            self._num_open_bytes += len(given)
            if self._num_open_bytes == self._chunk_bytes:
                self._whole += self._open.digest()
                self._open, self._num_open_bytes = xxhash.xxh3_128(), 0

    def hexdigests(self) -> str:
        """xxh3-128 of each chunk up to here, one after another."""
        is_open = self._num_open_bytes or not self._whole
        return (self._whole + self._open.digest() if is_open else self._whole).hex()


def hexdigests_of(data: bytes, chunk_bytes: int) -> str:
    """xxh3-128 of each chunk, one after another."""
    digester = ChunkDigester(chunk_bytes)
    digester.update(data)
    return digester.hexdigests()
