"""The model of a power cut can find what is wrong: protocols that are known to lose data lose it here."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from .durability import Disk, Tree, write_tree
from .recorder import Recorder
from .scenario import tree

OLD, NEW = b"the old text", b"the new text, somewhat longer"


def write(os_: Recorder, path: Path, *, sync: bool, flags: int = os.O_EXCL) -> None:
    descriptor = os_.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    os_.write(descriptor, NEW)
    if sync:
        os_.fsync(descriptor)
    os_.close(descriptor)


def sync_directory(os_: Recorder, path: Path) -> None:
    descriptor = os_.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os_.fsync(descriptor)
    os_.close(descriptor)


def in_place(os_: Recorder, root: Path) -> None:
    write(os_, root / "file", sync=True, flags=0)


def rename_without_any_sync(os_: Recorder, root: Path) -> None:
    write(os_, root / "file.tmp", sync=False)
    os_.replace(root / "file.tmp", root / "file")


def rename_without_sync_of_the_file(os_: Recorder, root: Path) -> None:
    rename_without_any_sync(os_, root)
    sync_directory(os_, root)


def rename_without_sync_of_the_directory(os_: Recorder, root: Path) -> None:
    write(os_, root / "file.tmp", sync=True)
    os_.replace(root / "file.tmp", root / "file")


def whole_protocol(os_: Recorder, root: Path) -> None:
    rename_without_sync_of_the_directory(os_, root)
    sync_directory(os_, root)


def after_cuts(root: Path, protocol: Callable[[Recorder, Path], None]) -> tuple[set[bytes], set[bytes]]:
    """What `file` may hold after a power cut at any point, and after one at the end."""
    (root / "file").write_bytes(OLD)
    before = tree(root)
    recorder = Recorder(root)
    protocol(recorder, root)

    def found(length: int) -> set[bytes]:
        disk = Disk(before)
        disk.apply(recorder.log[:length])
        randomness = random.Random(length)
        trees = [
            disk.all_lost(),
            disk.names_survive(),
            disk.lengths_survive(),
            disk.bytes_survive(),
            disk.now(),
        ]
        trees += [disk.some_survive(randomness) for _ in range(20)]
        return {found for survivor in trees if (found := survivor["file"]) is not None}

    whole = Disk(before)
    whole.apply(recorder.log)
    assert whole.now() == tree(root)
    lengths = range(len(recorder.log) + 1)
    return {data for length in lengths for data in found(length)}, found(len(recorder.log))


@pytest.mark.parametrize(
    ("protocol", "keeps_one", "keeps_the_promise"),
    [
        (in_place, False, True),
        (rename_without_any_sync, False, False),
        (rename_without_sync_of_the_file, False, False),
        (rename_without_sync_of_the_directory, True, False),
        (whole_protocol, True, True),
    ],
)
def test_what_each_protocol_loses(
    protocol: Callable[[Recorder, Path], None], keeps_one: bool, keeps_the_promise: bool, tmp_path: Path
) -> None:
    during, after = after_cuts(tmp_path, protocol)
    assert (during <= {OLD, NEW}) is keeps_one
    assert (after == {NEW}) is keeps_the_promise


def disk_after(root: Path, work: Callable[[Recorder], None], before: Tree) -> Disk:
    recorder = Recorder(root)
    work(recorder)
    disk = Disk(before)
    disk.apply(recorder.log)
    assert disk.now() == tree(root)
    return disk


def test_a_new_directory_is_lost_with_all_that_was_synced_in_it(tmp_path: Path) -> None:
    def work(os_: Recorder) -> None:
        os_.mkdir(tmp_path / "new")
        write(os_, tmp_path / "new" / "file", sync=True)
        sync_directory(os_, tmp_path / "new")

    disk = disk_after(tmp_path, work, {})
    assert disk.all_lost() == {}
    assert disk.names_survive() == {"new": None, "new/file": NEW}


def test_a_removed_file_may_come_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    disk = disk_after(tmp_path, lambda os_: os_.unlink(tmp_path / "file"), {"file": OLD})
    assert disk.all_lost() == {"file": OLD}
    assert disk.now() == {}


def test_between_two_directories_a_file_may_be_in_both(tmp_path: Path) -> None:
    before: Tree = {"a": None, "b": None, "a/file": OLD}
    write_tree(before, tmp_path / "root")
    root = tmp_path / "root"
    disk = disk_after(root, lambda os_: os_.replace(root / "a/file", root / "b/file"), before)
    randomness = random.Random(0)
    found = {tuple(sorted(disk.some_survive(randomness))) for _ in range(100)}
    assert found == {("a", "a/file", "b"), ("a", "a/file", "b", "b/file"), ("a", "b", "b/file")}


def test_a_file_that_moves_is_lost_if_only_the_old_directory_is_synced(tmp_path: Path) -> None:
    before: Tree = {"a": None, "b": None, "a/file": OLD}
    root = write_tree(before, tmp_path / "root")

    def work(os_: Recorder) -> None:
        os_.replace(root / "a" / "file", root / "b" / "file")
        sync_directory(os_, root / "a")

    assert disk_after(root, work, before).all_lost() == {"a": None, "b": None}


def test_a_rename_in_one_directory_is_never_half_done(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    disk = disk_after(tmp_path, lambda os_: os_.replace(tmp_path / "a", tmp_path / "b"), {"a": OLD})
    randomness = random.Random(0)
    assert {tuple(disk.some_survive(randomness)) for _ in range(50)} == {("a",), ("b",)}


def test_appended_and_cut_bytes(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(OLD)

    def work(os_: Recorder) -> None:
        descriptor = os_.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND, 0o644)
        os_.ftruncate(descriptor, 4)
        os_.write(descriptor, NEW)
        os_.close(descriptor)

    disk = disk_after(tmp_path, work, {"log": OLD})
    assert disk.all_lost() == {"log": OLD}
    assert disk.now() == {"log": OLD[:4] + NEW}
    survivor = disk.lengths_survive()["log"]
    assert survivor is not None
    assert (len(survivor), survivor[:4]) == (4 + len(NEW), OLD[:4])
    assert survivor[len(OLD) :] == bytes(4 + len(NEW) - len(OLD))
