"""A real ext4 file system in a file, whose power can be cut: a copy of the file is what had reached the disk.

The loop driver writes to the file only what the file system has sent to its device. What is still in the
caches of the file system is not in there, so a copy, mounted elsewhere, is the disk after a power cut then.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


class CannotMount(Exception):
    """Loop devices, mkfs.ext4 or the rights are missing; the message says which."""


@contextlib.contextmanager
def mounted(image: Path, directory: Path) -> Iterator[Path]:
    """The file system of an image, at `directory`, until the block ends."""
    directory.mkdir(exist_ok=True)
    # The journal commits when somebody syncs, not by the clock: what is lost does not depend on how busy the
    # machine is.
    _run("mount", "-o", "loop,commit=900", str(image), str(directory))
    try:
        yield directory
    finally:
        _unmount(directory)


def make_image(path: Path, *, size_bytes: int = 48 << 20) -> Path:
    """An empty file system; CannotMount where this machine does not allow it."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise CannotMount("mounting needs root")
    for tool in ("mkfs.ext4", "mount", "umount", "losetup"):
        if shutil.which(tool, path="/usr/sbin:/sbin:" + os.environ.get("PATH", "")) is None:
            raise CannotMount(f"{tool} is not installed")
    with path.open("wb") as file:
        file.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", str(path))
    with mounted(path, path.with_suffix(".try")):
        pass
    return path


def copy_image(image: Path, target: Path) -> Path:
    """What has reached the disk by now."""
    _run("cp", "--sparse=always", str(image), str(target))
    return target


def commit_journal(root: Path) -> None:
    """Another program on the same disk syncs a file of its own; so the names of all others become durable."""
    descriptor = os.open(root / "bystander", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, b"tick\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unmount(directory: Path) -> None:
    done = subprocess.run(["umount", str(directory)], capture_output=True)
    if done.returncode != 0:  # somebody still looks into it
        _run("umount", "--lazy", str(directory))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotMount(f"{' '.join(command)}: {done.stderr.strip()}")
