"""Verification of a checkpoint: every byte of every listed file, and the manifest itself. No torch.

It reads and judges one directory; choosing between checkpoints is the catalogue's work.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from yaoki.checkpoint.blocks import new_blocks
from yaoki.checkpoint.files import check_size, read_checked, read_small, require_directory
from yaoki.checkpoint.layout import MANIFEST, Kind, parse_directory, plain_child
from yaoki.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from yaoki.errors import CorruptCheckpointError


def verify(directory: Path) -> Manifest:
    """Check a checkpoint in full; files that its manifest does not list are ignored.

    Raises:
        CorruptCheckpointError: names the file and what is wrong: missing, not a regular file, wrong
            size or digest, unreadable; or the directory is not what its name says.
    """
    manifest = check_sizes(directory)
    _check_digests(directory, manifest.files, new_blocks(), _never_stop)
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
        raise CorruptCheckpointError(f"{directory}: not the name of a committed checkpoint")
    require_directory(directory)
    path = directory / MANIFEST
    manifest = parse_manifest(read_small(path), str(path))
    if manifest.step != candidate.step:
        raise CorruptCheckpointError(f"{path}: it is of step {manifest.step}, not of step {candidate.step}")
    return manifest


def read_back(
    directory: Path,
    manifest: bytes,
    files: Sequence[FileEntry],
    blocks: Sequence[memoryview],
    poll: Callable[[], None],
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
        raise CorruptCheckpointError(f"{path}: it does not hold what was written to it")
    _check_digests(directory, files, blocks, poll)


def _check_digests(
    directory: Path, files: Sequence[FileEntry], blocks: Sequence[memoryview], poll: Callable[[], None]
) -> None:
    for file in files:
        read_checked(plain_child(directory, file.name), file, blocks, lambda *_: poll())


def _never_stop() -> None:
    """Somebody waits for the verdict."""
