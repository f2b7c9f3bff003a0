"""Verification of a checkpoint: every byte of every listed file, and the manifest itself. No torch.

It reads and judges one directory; choosing between checkpoints is the catalogue's work.
"""

import os
import stat
from io import FileIO
from pathlib import Path

import xxhash

from yaoki.checkpoint.layout import MANIFEST, Kind, parse_directory, plain_child
from yaoki.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from yaoki.errors import CorruptCheckpointError

_BLOCK_BYTES = 8 << 20


def verify(directory: Path) -> Manifest:
    """Check a checkpoint in full; files that its manifest does not list are ignored.

    Raises:
        CorruptCheckpointError: names the file and what is wrong: missing, not a regular file, wrong
            size or digest, unreadable; or the directory is not what its name says.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, checked in itself and against the directory's name: a quick look.

    Raises:
        CorruptCheckpointError: see `verify`.
    """
    candidate = parse_directory(directory)
    if candidate is None or candidate.kind is Kind.UNFINISHED:
        raise CorruptCheckpointError(f"{directory}: not the name of a committed checkpoint")
    try:
        mode = directory.lstat().st_mode
    except OSError as error:
        raise CorruptCheckpointError(f"{directory}: {_reason(error)}") from error
    if not stat.S_ISDIR(mode):
        raise CorruptCheckpointError(f"{directory}: {_file_type(mode)}, expected a directory")
    path = directory / MANIFEST
    manifest = parse_manifest(_read_file(path), str(path))
    if manifest.step != candidate.step:
        raise CorruptCheckpointError(f"{path}: it is of step {manifest.step}, not of step {candidate.step}")
    return manifest


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Check the size of each listed file, then each file's digest by reading it whole.

    Raises:
        CorruptCheckpointError: see `verify`.
    """
    for file in manifest.files:
        _check_size(plain_child(directory, file.name), file)
    for file in manifest.files:
        _check_digest(plain_child(directory, file.name), file)


def verify_written(directory: Path, manifest: Manifest) -> None:
    """Read back a checkpoint that was just written, under whatever name it still has.

    Raises:
        CorruptCheckpointError: see `verify`; or the file of the manifest is not `manifest`.
    """
    path = directory / MANIFEST
    if _read_file(path) != manifest.to_bytes():
        raise CorruptCheckpointError(f"{path}: it does not hold what was written to it")
    verify_files(directory, manifest)


def _check_size(path: Path, expected: FileEntry) -> None:
    with _open_regular_file(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes != expected.size_bytes:
        raise CorruptCheckpointError(
            f"{path}: it has {size_bytes} bytes, the manifest says {expected.size_bytes}"
        )


def _check_digest(path: Path, expected: FileEntry) -> None:
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(min(_BLOCK_BYTES, expected.size_bytes + 1)))
    with _open_regular_file(path) as file:
        try:
            while num_read := file.readinto(block):
                digest.update(block[:num_read])
        except OSError as error:
            raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error
    if digest.hexdigest() != expected.xxh3_128:
        raise CorruptCheckpointError(
            f"{path}: its xxh3-128 digest is {digest.hexdigest()}, the manifest says {expected.xxh3_128}"
        )


def _read_file(path: Path) -> bytes:
    with _open_regular_file(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error


def _open_regular_file(path: Path) -> FileIO:
    """Open for reading without a buffer; never follows a link, never waits for a pipe's other end."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise CorruptCheckpointError(f"{path}: {_file_type(mode)}, expected a regular file")
        return FileIO(path, "rb", opener=_open_no_follow)
    except OSError as error:
        raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error


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
