"""Saving, choosing and pruning on a real file system."""

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.snapshots import INFO, content, small_snapshot
from yaoki import fs
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.layout import Kind
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import verify
from yaoki.errors import CorruptCheckpointError, YaokiError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints")


def save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(small_snapshot(step), step=step, info=INFO)


def names(store: Catalog) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def damage(path: Path) -> None:
    with (path / "state.json").open("ab") as file:
        file.write(b" ")


def chosen_step(store: Catalog) -> int | None:
    checkpoint = Catalog(store.directory).choose().checkpoint
    return None if checkpoint is None else checkpoint.manifest.step


def test_no_directory_and_nothing_committed_mean_a_fresh_start(store: CheckpointStore) -> None:
    assert store.choose().checkpoint is None
    assert store.candidates() == []
    assert store.prune(Policy(keep_last=1)) == []
    (store.directory / "step-00000001.tmp").mkdir(parents=True)
    choice = store.choose()
    assert choice.checkpoint is None
    assert "unfinished" in str(choice.refusals[0])


def test_a_directory_that_cannot_be_listed_is_no_fresh_start(store: CheckpointStore) -> None:
    store.directory.parent.mkdir(parents=True)
    store.directory.write_text("not a directory")
    with pytest.raises(YaokiError, match=r"cannot list .*: Not a directory"):
        store.choose()


def test_candidates_come_newest_first_with_what_they_are(store: CheckpointStore) -> None:
    save(store, 9, 10, 100_000_000, 9)
    (store.directory / "step-00000011.tmp").mkdir()
    (store.directory / "step-00000010.bak").mkdir()
    found = [(candidate.path.name, candidate.kind) for candidate in store.candidates()]
    assert found == [
        ("step-100000000", Kind.COMMITTED),
        ("step-00000011.tmp", Kind.UNFINISHED),
        ("step-00000010", Kind.COMMITTED),
        ("step-00000009", Kind.COMMITTED),
        ("step-00000009.replaced-1", Kind.REPLACED),
    ]


def test_leftovers_of_dead_attempts_go_at_the_next_save(store: CheckpointStore) -> None:
    save(store, 1)
    for name in ("step-00000002.tmp", "step-00000003.tmp", "step-00000000.trash", "step-00000002.tmp.trash"):
        (store.directory / name).mkdir()
        (store.directory / name / "half").write_text("half a file")
    for name in ("mine.tmp", "mine.trash"):
        (store.directory / name).mkdir()
    save(store, 2)
    assert names(store) == ["mine.tmp", "mine.trash", "step-00000001", "step-00000002"]


def test_saving_a_step_again_moves_the_old_one_aside(store: CheckpointStore) -> None:
    save(store, 1)
    path = store.directory / "step-00000001"
    for step in (5, 6):
        store.save(small_snapshot(step), step=1, info=INFO)
        assert content(load(path).parts) == content(small_snapshot(step).parts)
    replaced = [store.directory / f"step-00000001.replaced-{generation}" for generation in (1, 2)]
    assert [content(load(path).parts) for path in replaced] == [
        content(small_snapshot(step).parts) for step in (1, 5)
    ]
    shutil.rmtree(path)  # as if a crash had come between the two renames
    assert Catalog(store.directory).choose().checkpoint.path == replaced[1]  # type: ignore[union-attr]


def test_a_corrupt_one_of_the_same_step_is_moved_aside_too(store: CheckpointStore) -> None:
    save(store, 1, 2)
    damage(store.directory / "step-00000002")
    resumed = CheckpointStore(store.directory)
    assert chosen_step(resumed) == 1
    save(resumed, 2)
    assert chosen_step(resumed) == 2
    assert resumed.prune(Policy(keep_last=2)) == []
    save(resumed, 3)
    gone = resumed.prune(Policy(keep_last=2))
    assert [path.name for path in gone] == ["step-00000001", "step-00000002.replaced-1"]
    assert names(store) == ["step-00000002", "step-00000003"]


def test_prune_keeps_what_the_policy_keeps(store: CheckpointStore) -> None:
    save(store, 1, 2, 3, 4, 5, 6)
    Pins(store.directory).set("mine", 3)
    gone = store.prune(Policy(keep_last=1, keep_every=4, keep_best=1), metrics={1: 0.5, 2: 0.7})
    assert [path.name for path in gone] == ["step-00000001", "step-00000005"]
    assert names(store) == ["pins.json", *(f"step-0000000{step}" for step in (2, 3, 4, 6))]
    Pins(store.directory).set("another", 2)
    assert store.prune(Policy(keep_last=1, keep_every=4)) == []


def test_prune_in_a_new_process_does_not_count_corrupt_ones(store: CheckpointStore) -> None:
    save(store, 1, 2, 3, 4)
    damage(store.directory / "step-00000003")
    damage(store.directory / "step-00000004")
    later = Catalog(store.directory)
    assert [path.name for path in later.prune(Policy(keep_last=1))] == ["step-00000001"]
    assert chosen_step(later) == 2


def test_choosing_notices_damage_to_what_was_verified_before(store: CheckpointStore) -> None:
    save(store, 1, 2)
    damage(store.directory / "step-00000002")
    choice = store.choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.manifest.step == 1
    assert store.prune(Policy(keep_last=1)) == []


def test_too_little_space_is_told_before_anything_is_written(store: CheckpointStore) -> None:
    save(store, 1)
    huge = torch.zeros(1).expand(1 << 50)
    with pytest.raises(
        YaokiError, match=r"it needs 4,503,599,6\d\d,\d+,?\d* bytes, [\d,]+ are free"
    ) as caught:
        store.save(Snapshot({"p": PartState(Scope.SHARDED, {"t": huge})}), step=2, info=INFO)
    assert caught.value.hint
    assert names(store) == ["step-00000001"]


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """Writing beyond 12000 bytes of a file fails, as on a full disk but in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_error_while_writing_names_the_file_and_leaves_the_previous_one(
    store: CheckpointStore, file_size_limit: None
) -> None:
    save(store, 1)
    with pytest.raises(YaokiError, match=r"step-00000002.tmp/big-00000-of-00001.safetensors: File too large"):
        store.save(Snapshot({"big": PartState(Scope.SHARDED, {"t": torch.zeros(5000)})}), step=2, info=INFO)
    assert names(store) == ["step-00000001"]
    assert chosen_step(store) == 1
    save(store, 2)
    assert chosen_step(store) == 2


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(YaokiError, match=r"checkpoints/step-00000001: .*/run: File exists"):
        save(CheckpointStore(tmp_path / "run" / "checkpoints"), 1)


@pytest.mark.parametrize("value", [float("-inf"), {1: 2}, (1,)])
def test_state_that_json_cannot_carry_is_refused_by_name(store: CheckpointStore, value: object) -> None:
    save(store, 1)
    part = PartState(Scope.GLOBAL, json={"best": value})  # type: ignore[dict-item]
    with pytest.raises(YaokiError, match="the state of part 'progress'"):
        store.save(Snapshot({"progress": part}), step=2, info=INFO)
    with pytest.raises(YaokiError, match="cannot be written as JSON"):
        store.save(small_snapshot(2), step=2, info=replace(INFO, environment={"x": float("nan")}))
    assert names(store) == ["step-00000001"]


def test_what_does_not_read_back_is_told_and_never_chosen(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes a byte between the write and the read-back."""
    save(store, 1)
    write = fs.write_file_durably

    def write_on_a_bad_disk(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == "manifest.json":
            damage(path.parent)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "write_file_durably", write_on_a_bad_disk)
        with pytest.raises(YaokiError, match=r"does not read back .*state\.json"):
            save(store, 2)
    assert chosen_step(store) == 1
    assert store.prune(Policy(keep_last=1)) == [], "nothing older goes for the sake of a bad one"
    save(store, 2)
    assert chosen_step(store) == 2


def test_a_state_of_fewer_ranks_than_the_manifest_says(store: CheckpointStore) -> None:
    save(store, 1)
    path = store.directory / "step-00000001"
    manifest = replace(verify(path), world_size=2)
    (path / "manifest.json").write_bytes(manifest.to_bytes())
    with pytest.raises(CorruptCheckpointError, match="a `per_rank` entry for each rank"):
        load(path)


def test_all_is_durable_before_the_commit_and_the_commit_before_the_return(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would find: fsync must come after the last byte, and before the rename."""
    synced_bytes: dict[int, int] = {}
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced_bytes[status.st_ino] = status.st_size
        events.append(f"fsync {status.st_ino}")

    def recorded_rename(source: Path, target: Path) -> None:
        for path in [source, *source.iterdir()]:
            assert synced_bytes[path.stat().st_ino] == path.stat().st_size, path
        assert events[-1] == f"fsync {source.stat().st_ino}", "the names in it are made durable last"
        rename(source, target)
        events.append("rename")

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_rename)
    save(store, 1)
    assert events[-2:] == ["rename", f"fsync {store.directory.stat().st_ino}"]
    parents = [tmp_path.parent, tmp_path, store.directory.parent]
    assert events[:3] == [f"fsync {path.stat().st_ino}" for path in parents]
