"""A part that rarely changes is linked to the last checkpoint's file, never believed to be the same."""

import errno
import os
from pathlib import Path

import pytest
import torch

from tests.support.faulty_os import replace_os
from tests.support.snapshots import INFO, content
from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint
from yaoki.checkpoint.io.frozen import FrozenTensors
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import verify
from yaoki.errors import YaokiError

FILE = "reference-00000-of-00001.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def snapshot(step: int, version: int = 0, num_elements: int = 5000) -> Snapshot:
    reference = torch.full((num_elements,), float(version))
    return Snapshot(
        {
            "policy": PartState(Scope.SHARDED, {"w": torch.full((3,), float(step))}),
            "reference": PartState(Scope.SHARDED, {"w": reference, "tied": reference}, rarely_changes=True),
            "progress": PartState(Scope.GLOBAL, json={"step": step}),
        }
    )


def save(store: CheckpointStore, step: int, **state: int) -> Path:
    saved = store.save(snapshot(step, **state), step=step, info=INFO)
    assert content(load(saved.path).parts) == content(snapshot(step, **state).parts)
    return saved.path / FILE


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_an_unchanged_part_is_one_file_with_many_names(store: CheckpointStore) -> None:
    files = [save(store, step) for step in (1, 2, 3)]
    assert len({inode(path) for path in files}) == 1
    assert len({inode(path.with_name("policy-00000-of-00001.safetensors")) for path in files}) == 3
    assert [path.name for path in store.prune(Policy(keep_last=1))] == ["step-00000001", "step-00000002"]
    verify(files[2].parent)
    assert files[2].stat().st_nlink == 1


def test_a_large_part_is_linked_by_its_own_chunks(store: CheckpointStore) -> None:
    first, second = (save(store, step, num_elements=5_000_000) for step in (1, 2))
    assert inode(first) == inode(second)
    entries = {file.name: file for file in verify(first.parent).files}
    assert entries[FILE].chunk_bytes == 8192
    assert entries["state.json"].chunk_bytes == 4096


def test_what_was_linked_need_not_be_waited_for(store: CheckpointStore) -> None:
    save(store, 1)
    source = FrozenTensors()
    store.commit(snapshot(2), source, step=2, info=INFO)
    source.close()
    assert source.release(0)


def test_a_changed_part_is_written(store: CheckpointStore) -> None:
    old, new = save(store, 1), save(store, 2, version=1)
    assert inode(old) != inode(new)
    assert inode(save(store, 3, version=1)) == inode(new)
    assert inode(save(store, 4, version=1, num_elements=4999)) != inode(new)


def test_only_what_this_store_has_seen_whole_is_linked_to(store: CheckpointStore) -> None:
    old = save(store, 1)
    assert inode(save(CheckpointStore(store.directory), 2)) != inode(old)
    verified = ValidCheckpoint(old.parent, verify(old.parent))
    assert inode(save(CheckpointStore(store.directory, verified), 3)) == inode(old)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP])
def test_where_links_are_impossible_it_is_written(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    old = save(store, 1)
    replace_os(monkeypatch, link=refuse)
    assert inode(save(store, 2)) != inode(old)


def test_where_the_earlier_file_is_gone_it_is_written(store: CheckpointStore) -> None:
    save(store, 1).unlink()
    save(store, 2)


def test_a_file_found_corrupt_is_not_linked_to_again(store: CheckpointStore) -> None:
    """It has rotted since it was verified: every checkpoint that shares it is lost, but not the next one."""
    old = save(store, 1)
    with old.open("r+b") as file:
        file.seek(5000)
        file.write(b"rot")
    with pytest.raises(YaokiError, match=rf"step-00000002 does not read back .*{FILE}"):
        save(store, 2)
    new = save(store, 3)
    assert inode(new) != inode(old)
    choice = Catalog(store.directory).choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == new.parent


def test_the_same_step_saved_again_is_not_taken_for_the_old_one(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save of step 1 that was not read back must not be linked to because an earlier step 1 was."""
    old = save(store, 1)
    store.commit(snapshot(1, version=1), FrozenTensors(), step=1, info=INFO)
    replaced = old.parent.with_name("step-00000001.replaced-1") / FILE
    new = save(store, 2)
    assert inode(new) not in (inode(old), inode(replaced))


def test_the_space_of_what_is_linked_is_not_asked_for(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly_full(path: Path) -> os.statvfs_result:
        found = list(os.statvfs(path))
        found[0], found[1], found[4] = 1, 1, (16 << 20) + 10_000  # bsize, frsize, bavail
        return os.statvfs_result(found)

    save(store, 1)
    replace_os(monkeypatch, statvfs=nearly_full)
    save(store, 2)
    with pytest.raises(YaokiError, match=r"it needs 16,7\d\d,\d+,? bytes|it needs [\d,]+ bytes"):
        save(CheckpointStore(store.directory), 3)
