"""Files of one run for another: linked where they never change again, copied otherwise. No torch in here.

Everything is durable on return. Knows nothing of why a run takes something over.
"""

import errno
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.catalog import ValidCheckpoint
from yaoki.checkpoint.layout import MANIFEST, directory_name, plain_child

_BLOCK_BYTES = 8 << 20
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that cannot link these two names."""


def take_over(checkpoint: ValidCheckpoint, checkpoints: Path) -> bool:
    """Put the files of a checkpoint into another `checkpoints/`, under its own name. True if all are links.

    What was copied has not been read back.
    """
    target = checkpoints / directory_name(checkpoint.manifest.step)
    fs.make_directory(target)
    names = [file.name for file in checkpoint.manifest.files] + [MANIFEST]
    linked = [_link_or_copy(checkpoint.path / name, plain_child(target, name)) for name in names]
    fs.fsync_directory(target)
    return all(linked)


def link_files(source: Path, target: Path) -> None:
    """The files of a directory, not what is below it, as links where that is possible."""
    fs.make_directory(target)
    for path in sorted(source.iterdir()):
        if path.is_file():
            _link_or_copy(path, target / path.name)
    fs.fsync_directory(target)


def copy_tree(source: Path, target: Path) -> None:
    """A directory with all below it."""
    fs.make_directory(target)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_tree(path, target / path.name)
        else:
            _copy(path, target / path.name)
    fs.fsync_directory(target)


def copy_file(source: Path, target: Path) -> None:
    """One file, under a name that is still free."""
    _copy(source, target)
    fs.fsync_directory(target.parent)


def _link_or_copy(source: Path, target: Path) -> bool:
    try:
        fs.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target)
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Durable but for its name."""
    with source.open("rb") as old, fs.create_durably(target) as new:
        while block := old.read(_BLOCK_BYTES):
            new.write(block)
