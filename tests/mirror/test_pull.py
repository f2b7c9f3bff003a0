"""A run back from its copy: what comes, what is checked, and what a crash leaves."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from yaoki import fs
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.layout import directory_name
from yaoki.errors import CorruptCheckpointError, RefusedError
from yaoki.mirror.layout import manifest_name
from yaoki.mirror.pull import fetch, fetch_config
from yaoki.runs.directory import RunDirectory

from .samples import (
    URL,
    FaultyFileSystem,
    Killed,
    bulk_of,
    cut_back,
    do_step,
    new_copier,
    save,
    start_run,
    stored,
    whole_checkpoints,
)

EFFECTS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 2 and 4, rollouts up to step 5, all of it copied."""
    path = start_run(tmp_path / "run")
    for step in range(1, 6):
        do_step(path, step)
        if step in (2, 4):
            save(path, step)
    new_copier(path).copy()
    return path


def fetch_quietly(target: Path) -> bool:
    def complain(text: str) -> None:
        raise AssertionError(text)

    return fetch(URL, target, complain)


def spoil(name: str, data: bytes | None = None) -> None:
    path = f"/bucket/run/{name}"
    old = FaultyFileSystem.store[path].getvalue()
    FaultyFileSystem().pipe_file(path, bytes([old[0] ^ 1]) + old[1:] if data is None else data)


def needed_of(path: Path) -> dict[str, bytes]:
    """What a fetch brings of the run: the newest checkpoint, the rollouts after it, and the small files."""
    return {
        name: data
        for name, data in bulk_of(path).items()
        if not name.startswith(("checkpoints/", "rollouts/"))
        or name.startswith(("checkpoints/step-00000004", "rollouts/step-00000005"))
    }


def test_a_run_comes_back(run: Path, tmp_path: Path) -> None:
    assert fetch_quietly(tmp_path / "new")
    assert bulk_of(tmp_path / "new") == needed_of(run)
    assert Catalog(tmp_path / "new" / "checkpoints").choose().checkpoint is not None
    assert not (tmp_path / "new" / "logs" / "fetched").exists()
    before = stored()
    new_copier(tmp_path / "new").copy()
    assert stored() == before, "going on from it takes nothing away"


def test_where_there_is_a_run_nothing_is_fetched(run: Path, tmp_path: Path) -> None:
    before = bulk_of(run)
    assert not fetch_quietly(run)
    assert bulk_of(run) == before


def test_where_there_is_no_copy_nothing_is_fetched(tmp_path: Path) -> None:
    assert not fetch_quietly(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert fetch_config(URL) is None


def test_the_config_alone(run: Path) -> None:
    assert fetch_config(URL) == (run / "config.json").read_bytes()


@pytest.mark.parametrize("file", ["policy.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("data", [None, b"", b"x" * 1000])
def test_a_damaged_checkpoint_is_passed_over(
    run: Path, tmp_path: Path, file: str, data: bytes | None
) -> None:
    spoil(f"checkpoints/{directory_name(4)}/{file}", data)
    warnings: list[str] = []
    assert fetch(URL, tmp_path / "new", warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"not fetched: {URL}/checkpoints/step-00000004/{file}: ")
    found = bulk_of(tmp_path / "new")
    assert {n for n in found if "checkpoints" in n} == {n for n in bulk_of(run) if "step-00000002/" in n} - {
        n for n in bulk_of(run) if "rollouts" in n
    }
    assert {n[9:22] for n in found if n.startswith("rollouts/")} == {f"step-0000000{n}" for n in (3, 4, 5)}
    new_copier(tmp_path / "new").copy()
    assert whole_checkpoints() == [2], "and is removed there, once the older one is in use"


def test_none_that_can_be_used_is_no_fresh_start(run: Path, tmp_path: Path) -> None:
    for step in (2, 4):
        spoil(f"checkpoints/{directory_name(step)}/state.json")
    with pytest.raises(CorruptCheckpointError, match="none that can be used") as caught:
        fetch(URL, tmp_path / "new", lambda text: None)
    assert str(caught.value).count("the xxh3-128 digest of its bytes") == 2
    assert not (tmp_path / "new" / "run.json").exists()


def test_checkpoints_that_are_gone_are_no_fresh_start(run: Path, tmp_path: Path) -> None:
    for step in (2, 4):
        FaultyFileSystem().rm_file(f"/bucket/run/{manifest_name(step)}")
    with pytest.raises(CorruptCheckpointError, match="none that can be used"):
        fetch_quietly(tmp_path / "new")


def test_before_the_first_checkpoint_the_journal_comes_back(tmp_path: Path) -> None:
    path = start_run(tmp_path / "run")
    do_step(path, 1)
    new_copier(path).copy()
    assert fetch_quietly(tmp_path / "new")
    assert bulk_of(tmp_path / "new") == bulk_of(path)


def test_a_damaged_segment_is_left_out(run: Path, tmp_path: Path) -> None:
    segment = next(name for name in stored() if name.startswith("rollouts/step-00000005"))
    spoil(segment)
    warnings: list[str] = []
    assert fetch(URL, tmp_path / "new", warnings.append)
    assert "its rollouts are sampled again" in warnings[0]
    assert bulk_of(tmp_path / "new").keys() == needed_of(run).keys() - {segment}


def test_metrics_that_were_cut_back_later_are_those_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    """As when the run went on from step 2 for damage of the disk, and then was lost before step 4."""
    rows = (run / "metrics.jsonl").read_bytes()
    cut_back(run, 2)
    do_step(run, 3, "again")
    new_copier(run).copy()
    assert stored()["metrics.jsonl"] != rows
    assert fetch_quietly(tmp_path / "new")
    assert (tmp_path / "new" / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize(
    "name", ["model/../../evil", "model/.hidden", "checkpoints/step-00000004/../../evil", "../evil", "/evil"]
)
def test_names_that_lead_elsewhere_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    FaultyFileSystem().pipe_file(f"/bucket/run/{name}", b"evil")
    assert fetch_quietly(tmp_path / "inside" / "new")
    assert bulk_of(tmp_path / "inside" / "new") == needed_of(run)
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["new"]


class DyingOs:
    """Stands for `os` in yaoki.fs; the process dies at one of the calls that change files."""

    def __init__(self, dies_at: int) -> None:
        self.num_effects = 0
        self._dies_at = dies_at

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self._counted(call) if name in EFFECTS else call

    def _counted(self, call: Any) -> Any:
        def effect(*args: Any, **kwargs: Any) -> Any:
            self.num_effects += 1
            if self.num_effects == self._dies_at:
                raise Killed
            return None if call is os.fsync else call(*args, **kwargs)  # the power stays on

        return effect


def test_killed_at_every_effect(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock can be taken whatever is left, and the next fetch comes to the same."""
    target, index = tmp_path / "new", 0
    while True:
        index += 1
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run / "model", target / "model")  # of a run that was never begun
        dying = DyingOs(index)
        monkeypatch.setattr(fs, "os", dying)
        try:
            fetch_quietly(target)
            break
        except Killed:
            monkeypatch.setattr(fs, "os", DyingOs(-1))
        with RunDirectory(target).lock():
            fetch_quietly(target)
        assert bulk_of(target) == needed_of(run)
        assert not list(target.glob("logs/*"))
    assert index == dying.num_effects + 1 > 100


def test_what_a_dead_fetch_has_left_is_not_taken_for_another_run(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    fetch_quietly(target)
    whole = target / "logs" / "fetched"
    shutil.copytree(run, whole)
    before = bulk_of(target)
    assert not fetch_quietly(target)
    assert bulk_of(target) == before


def test_a_half_fetched_checkpoint_is_used(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new"
    folder = target / "logs" / "fetching" / "checkpoints"
    shutil.copytree(run / "checkpoints" / directory_name(4), folder / directory_name(4))
    (folder / directory_name(4) / "state.json").write_bytes(b"half")
    shutil.copytree(run / "checkpoints" / directory_name(2), folder / directory_name(2))
    read: list[str] = []
    cat_file = FaultyFileSystem.cat_file

    def see(self: FaultyFileSystem, path: str, **kwargs: Any) -> bytes:
        read.append(path)
        return cat_file(self, path, **kwargs)

    monkeypatch.setattr(FaultyFileSystem, "cat_file", see)
    assert fetch_quietly(target)
    assert bulk_of(target) == needed_of(run)
    assert [path for path in read if path.endswith("policy.safetensors")] == []
    assert len([path for path in read if path.endswith("state.json")]) == 1


def test_a_run_that_went_on_elsewhere_is_not_gone_on_with(run: Path, tmp_path: Path) -> None:
    fetch_quietly(tmp_path / "new")
    do_step(tmp_path / "new", 6)
    save(tmp_path / "new", 6)
    new_copier(tmp_path / "new").copy()
    with pytest.raises(RefusedError, match="was continued elsewhere"):
        new_copier(run)
