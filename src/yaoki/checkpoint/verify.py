"""Verifies a checkpoint: its manifest, and every byte of the files that the manifest lists. No torch.

The files are untrusted: they may be of any size or kind, damaged, links or pipes.
"""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from io import FileIO
from pathlib import Path

from yaoki.checkpoint.chunks import DIGEST_CHARACTERS, ChunkDigester, hexdigests_of, num_chunks
from yaoki.checkpoint.direct_io import new_blocks, reading
from yaoki.checkpoint.layout import MANIFEST, Kind, parse_directory, plain_child
from yaoki.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from yaoki.errors import CorruptCheckpointError
from yaoki.types import Poll


def verify(directory: Path) -> Manifest:
    """Read and check a checkpoint in full; files that its manifest does not list are ignored.

    Raises:
        CorruptCheckpointError: a file is missing, unreadable, not a regular file, or of a wrong size or
            digest; or the directory's name is that of another step.
    """
    manifest = check_sizes(directory)
    _check_digests(directory, manifest.files, new_blocks())
    return manifest


def check_sizes(directory: Path) -> Manifest:
    """Check the manifest and the sizes of the files; their content is not read.

    Raises:
        CorruptCheckpointError: see `verify`.
    """
    manifest = read_manifest(directory)
    for file in manifest.files:
        check_size(plain_child(directory, file.name), file)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest and check it, also against the directory's name; other files are not looked at.

    Raises:
        CorruptCheckpointError: see `verify`.
    """
    candidate = parse_directory(directory)
    if candidate is None or candidate.kind is Kind.UNFINISHED:
        raise CorruptCheckpointError("not the name of a committed checkpoint", path=directory)
    require_directory(directory)
    path = directory / MANIFEST
    manifest = parse_manifest(read_small(path), path)
    if manifest.step != candidate.step:
        raise CorruptCheckpointError(
            f"it is of step {manifest.step}, not of step {candidate.step}", path=path
        )
    return manifest


def read_back(
    directory: Path,
    manifest: bytes,
    files: Sequence[FileEntry],
    blocks: Sequence[memoryview],
    poll: Poll | None = None,
) -> None:
    """Read a checkpoint that was just written back from the disk, and check it.

    Args:
        manifest: the bytes that were written as the manifest.
        files: its entries of the files to read.
        blocks: buffers to read into.
        poll: called after each block; what it raises ends the reading.

    Raises:
        CorruptCheckpointError: see `verify`; or the bytes of the manifest differ.
    """
    path = directory / MANIFEST
    if read_small(path) != manifest:
        raise CorruptCheckpointError("its content differs from what was written", path=path)
    _check_digests(directory, files, blocks, poll)


def _check_digests(
    directory: Path, files: Sequence[FileEntry], blocks: Sequence[memoryview], poll: Poll | None = None
) -> None:
    def take(*_: object) -> None:
        if poll is not None:
            poll()

    for file in files:
        read_checked(plain_child(directory, file.name), file, blocks, take)


_MAX_BYTES_IN_MEMORY = 256 << 20
"""Far more than any manifest or state has; larger files are never read into memory at once."""


def require_directory(path: Path) -> None:
    """CorruptCheckpointError unless `path` is a directory, and not a link to one."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise CorruptCheckpointError(_reason(error), path=path) from error
    if not stat.S_ISDIR(mode):
        raise CorruptCheckpointError(f"{_file_type(mode)}, expected a directory", path=path)


def read_small(path: Path) -> bytes:
    """All bytes of a file that should be small.

    Raises:
        CorruptCheckpointError: it is missing, unreadable, not a regular file, or larger than 256 MiB.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > _MAX_BYTES_IN_MEMORY:
            raise CorruptCheckpointError(
                f"it has {size_bytes} bytes, at most {_MAX_BYTES_IN_MEMORY} are expected", path=path
            )
        try:
            return file.read(_MAX_BYTES_IN_MEMORY)
        except OSError as error:
            raise CorruptCheckpointError(_reason(error), path=path) from error


def read_small_checked(path: Path, expected: FileEntry) -> bytes:
    """All bytes of a small file, after checking size and digests.

    Raises:
        CorruptCheckpointError: see `read_small` and `read_checked`.
    """
    check_size(path, expected)
    data = read_small(path)
    require_digests(path, hexdigests_of(data, expected.chunk_bytes), expected)
    return data


def check_size(path: Path, expected: FileEntry) -> None:
    """CorruptCheckpointError unless this is a regular file of the expected size. Its content is not read."""
    with open_regular(path) as file:
        _require_size(path, file, expected)


def read_checked(
    path: Path,
    expected: FileEntry,
    blocks: Sequence[memoryview],
    take: Callable[[int, memoryview], None],
    spans: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Read a file, or spans of it, once and from the disk, and pass the bytes on; then check their digests.

    The bytes are verified only when this returns; until then they must not be trusted.

    Args:
        blocks: buffers to read into.
        take: called with the file offset and a view of the bytes, in order; views are reused.
        spans: (begin, end) of whole chunks, in order; see `whole_chunks`. None reads all of the file.

    Raises:
        CorruptCheckpointError: missing, unreadable, not a regular file, wrong size or digest.
    """
    spans = _all_of(expected) if spans is None else spans
    digests = ChunkDigester(expected.chunk_bytes)
    with open_regular(path) as file:
        _require_size(path, file, expected)
        try:
            with reading(file, blocks, spans) as views:
                for begin, view in views:
                    digests.update(view)
                    take(begin, view)
        except OSError as error:
            raise CorruptCheckpointError(_reason(error), path=path) from error
    require_digests(path, digests.hexdigests(), expected, spans)


def whole_chunks(file: FileEntry, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans of whole chunks that cover ranges of a file; adjacent ones are merged.

    Args:
        ranges: (begin, end), not empty, sorted by begin.
    """
    spans: list[tuple[int, int]] = []
    for begin, end in ranges:
        first = begin // file.chunk_bytes * file.chunk_bytes
        last = min(file.size_bytes, -(-end // file.chunk_bytes) * file.chunk_bytes)
        if spans and first <= spans[-1][1]:
            first, last = spans[-1][0], max(spans.pop()[1], last)
        spans.append((first, last))
    return spans


def require_digests(
    place: Path | str, found: str, expected: FileEntry, spans: Sequence[tuple[int, int]] | None = None
) -> None:
    """CorruptCheckpointError unless `found` are the expected digests of the chunks in `spans`.

    Args:
        place: path or URL of the file, for the message.
        spans: as for `read_checked`.
    """
    size, spans = expected.chunk_bytes, _all_of(expected) if spans is None else spans
    runs = [(begin // size, num_chunks(end - begin, size)) for begin, end in spans]
    if found == "".join(expected.digests(first, number) for first, number in runs):
        return
    chunks = [chunk for first, number in runs for chunk in range(first, first + number)]
    for i, chunk in enumerate(chunks):
        is_now = found[i * DIGEST_CHARACTERS : (i + 1) * DIGEST_CHARACTERS]
        if is_now != expected.digests(chunk, 1):
            end = min(expected.size_bytes, (chunk + 1) * size)
            raise CorruptCheckpointError(
                f"the xxh3-128 digest of its bytes {chunk * size} to {end} is {is_now or 'missing'}, "
                f"not {expected.digests(chunk, 1)}",
                path=place,
            )
    raise CorruptCheckpointError(f"it has more than its {expected.size_bytes} bytes", path=place)


def _all_of(file: FileEntry) -> list[tuple[int, int]]:
    return [(0, file.size_bytes)]


def _require_size(path: Path, file: FileIO, expected: FileEntry) -> None:
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes != expected.size_bytes:
        raise CorruptCheckpointError(
            f"it has {size_bytes} bytes, the manifest says {expected.size_bytes}", path=path
        )


def open_regular(path: Path) -> FileIO:
    """Open for unbuffered reading; refuses links and pipes, so it never blocks."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise CorruptCheckpointError(f"{_file_type(mode)}, expected a regular file", path=path)
        return FileIO(path, "rb", opener=_open_no_follow)
    except OSError as error:
        raise CorruptCheckpointError(_reason(error), path=path) from error


def _open_no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _file_type(mode: int) -> str:
    types = (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
    )
    return next((name for is_type, name in types if is_type(mode)), "a special file")


def _reason(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error.strerror}"
