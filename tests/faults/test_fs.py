"""What each function of `yaoki.fs` promises to be durable, on a disk that loses all that was not synced."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from yaoki import fs
from yaoki.runs.directory import RunDirectory

from .durability import Disk, Tree, write_tree
from .effects import Entry
from .recorder import Recorder
from .scenario import tree


def recorded(root: Path, work: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    recorder = Recorder(root)
    with monkeypatch.context() as patch:
        patch.setattr(fs, "os", recorder)
        work(root)
    return recorder.log


def write_log(root: Path) -> None:
    with contextlib.closing(fs.open_at_end(root / "log")) as file:
        file.write(b"line\n")
        file.sync()


WORKS: dict[str, tuple[Tree, Callable[[Path], object], Tree]] = {
    "make_directory": ({}, lambda root: fs.make_directory(root / "a" / "b"), {"a": None, "a/b": None}),
    "open_at_end": ({}, write_log, {"log": b"line\n"}),
    "publish": ({"file": b"old"}, lambda root: fs.publish(root / "file", b"new"), {"file": b"new"}),
    "replace_durably": (
        {"a": None, "a/file": b"x", "b": None},
        lambda root: fs.replace_durably(root / "a" / "file", root / "b" / "file"),
        {"a": None, "b": None, "b/file": b"x"},
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_a_function_promises_survives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, work, after = WORKS[name]
    log = recorded(write_tree(before, tmp_path / "root"), work, monkeypatch)
    disk = Disk(before)
    disk.apply(log)
    assert disk.all_lost() == after


@pytest.mark.parametrize("name", ["make_directory", "open_at_end", "publish"])
def test_it_survives_also_if_a_first_try_was_killed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, work, after = WORKS[name]
    first = recorded(write_tree(before, tmp_path / "root"), work, monkeypatch)
    for killed in range(len(first)):
        disk = Disk(before)
        disk.apply(first[:killed])
        left = write_tree(disk.now(), tmp_path / str(killed))
        disk.apply(recorded(left, work, monkeypatch))
        survivor = disk.all_lost()
        assert {path: (data or b"")[-5:] for path, data in survivor.items()} == {
            path: (data or b"")[-5:] for path, data in after.items()
        }, first[killed].effect


def test_half_a_tree_never_comes_back_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process died just after the rename; the second removes what it finds."""
    before: Tree = {"old": None, "old/a": b"a", "old/b": b"b"}
    root = write_tree(before, tmp_path / "root")
    first = recorded(root, lambda root: fs.remove_tree(root / "old"), monkeypatch)
    (moved,) = [index for index, entry in enumerate(first) if entry.effect.kind == "replace"]
    disk = Disk(before)
    disk.apply(first[: moved + 1])
    left = write_tree(disk.now(), tmp_path / "left")
    second = recorded(left, lambda root: fs.remove_tree(root / "old.trash"), monkeypatch)
    randomness = random.Random(0)
    for entry in second:
        disk.apply([entry])
        for survivor in (disk.some_survive(randomness) for _ in range(50)):
            assert "old" not in survivor or set(survivor) == set(before)


def test_the_name_of_a_new_run_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.harness import make_config

    def make_run(root: Path) -> None:
        directory = RunDirectory(root / "run")
        with directory.lock():
            directory.create(make_config())

    log = recorded(tmp_path, make_run, monkeypatch)
    assert [entry for entry in log if entry.effect.kind == "fsync" and entry.effect.path == "."]


def test_the_model_sees_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (before, work, _) in WORKS.items():
        root = write_tree(before, tmp_path / name)
        disk = Disk(before)
        disk.apply(recorded(root, work, monkeypatch))
        assert disk.now() == tree(root)
