"""Verification of a checkpoint: every byte of every listed file, and the manifest itself. No torch.

It reads and judges one directory; choosing between checkpoints is the catalogue's work.
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
    """Check a checkpoint in full; files that its manifest does not list are ignored.

    Raises:
        CorruptCheckpointError: names the file and what is wrong: missing, not a regular file, wrong
            size or digest, unreadable; or the directory is not what its name says.
    """
    manifest = check_sizes(directory)
    _check_digests(directory, manifest.files, new_blocks())
    return manifest


def check_sizes(directory: Path) -> Manifest:
    """The manifest, and that each file it lists is there in its size: a quick look, whatever the files hold.

    Raises:
        CorruptCheckpointError: see `verify`.
    """
    manifest = read_manifest(directory)
    for file in manifest.files:
        check_size(plain_child(directory, file.name), file)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, checked in itself and against the directory's name: a quick look.

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
    """Read, from the disk, a checkpoint that was just written.

    Args:
        manifest: the bytes that were written as the manifest.
        files: what they say of the files to read.
        blocks: to read into; `poll` is called after each, and what it raises ends the reading.

    Raises:
        CorruptCheckpointError: see `verify`; or the file of the manifest holds other bytes.
    """
    path = directory / MANIFEST
    if read_small(path) != manifest:
        raise CorruptCheckpointError("it does not hold what was written to it", path=path)
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
"""Manifests and states are far smaller; nothing larger is taken into memory at once."""


def require_directory(path: Path) -> None:
    """CorruptCheckpointError unless `path` is a directory itself, not a link to one."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise CorruptCheckpointError(_reason(error), path=path) from error
    if not stat.S_ISDIR(mode):
        raise CorruptCheckpointError(f"{_file_type(mode)}, expected a directory", path=path)


def read_small(path: Path) -> bytes:
    """All bytes of a file that fits into memory with ease.

    Raises:
        CorruptCheckpointError: it is missing, unreadable, no regular file, or far too big.
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
    """All bytes of a small file, of the expected size and digest.

    Raises:
        CorruptCheckpointError: see `read_small` and `read_checked`.
    """
    check_size(path, expected)
    data = read_small(path)
    require_digests(path, hexdigests_of(data, expected.chunk_bytes), expected)
    return data


def check_size(path: Path, expected: FileEntry) -> None:
    """CorruptCheckpointError unless this is a regular file of the expected size. Nothing of it is read."""
    with open_regular(path) as file:
        _require_size(path, file, expected)


def read_checked(
    path: Path,
    expected: FileEntry,
    blocks: Sequence[memoryview],
    take: Callable[[int, memoryview], None],
    spans: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Read a file, or some spans of it, once, from the disk: give the bytes to `take`, with their place.

    They come in order, in views that are reused. Believe them only when this has returned: not until then
    are the digests known.

    Args:
        spans: (begin, end) in the file's order; each of whole chunks, see `whole_chunks`. None: all of it.

    Raises:
        CorruptCheckpointError: missing, not a regular file, wrong size or digest, unreadable; names the file.
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
    """The chunks in which ranges of a file lie, as spans that do not touch one another.

    Args:
        ranges: (begin, end), none of them empty, in the order of where they begin.
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
    """CorruptCheckpointError, with the place, unless `found` are the digests of the chunks in the spans.

    `spans` as for `read_checked`.
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
    """Open for reading without a buffer; never follows a link, never waits for a pipe's other end."""
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
