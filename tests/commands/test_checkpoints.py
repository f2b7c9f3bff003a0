"""Listing, verifying, pruning and pinning the checkpoints of a real run."""

import os
from pathlib import Path

import pytest

from yaoki.checkpoint.layout import directory_name, unfinished_name
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import read_manifest
from yaoki.commands.checkpoints import (
    CheckpointInfo,
    UnusableCheckpoint,
    list_checkpoints,
    pin_checkpoint,
    prune_checkpoints,
    unpin_checkpoint,
    verify_checkpoints,
)
from yaoki.errors import NothingThereError, RefusedError
from yaoki.journal.metrics import read_rows
from yaoki.runs.directory import RunDirectory


@pytest.fixture
def run(copied: Path) -> RunDirectory:
    """Checkpoints of steps 2 and 3."""
    return RunDirectory(copied)


def listed(run: RunDirectory) -> list[CheckpointInfo | UnusableCheckpoint]:
    return list_checkpoints(run, read_rows(run.metrics_path))


def test_a_list_says_what_the_manifests_say(run: RunDirectory) -> None:
    newest, oldest = listed(run)
    assert isinstance(newest, CheckpointInfo)
    assert isinstance(oldest, CheckpointInfo)
    manifest = read_manifest(run.checkpoints / directory_name(2))
    assert oldest.age_s >= 0
    assert oldest == CheckpointInfo(
        name=directory_name(2),
        step=2,
        state="committed",
        size_bytes=manifest.size_bytes,
        created_unix_s=manifest.created_unix_s,
        age_s=oldest.age_s,
        run_id=run.run_id,
        attempt=1,
        parent=None,
        parts=tuple(part.name for part in manifest.parts),
        held_out_accuracy=read_rows(run.metrics_path)[2].accuracy,
        pins=(),
    )
    summary = run.summary()
    assert summary is not None
    assert newest.held_out_accuracy == summary.accuracy_after


def test_a_list_names_what_is_no_checkpoint_and_why(run: RunDirectory) -> None:
    (run.checkpoints / directory_name(2)).rename(run.checkpoints / f"{directory_name(2)}.replaced-1")
    (run.checkpoints / unfinished_name(4)).mkdir()
    (run.checkpoints / directory_name(3) / "manifest.json").write_text("{}")
    found = {entry.name: (entry.state, getattr(entry, "problem", "")) for entry in listed(run)}
    assert found[f"{directory_name(2)}.replaced-1"] == ("replaced", "")
    state, problem = found[unfinished_name(4)]
    assert (state, "its writer died" in problem) == ("unfinished", True)
    state, problem = found[directory_name(3)]
    assert (state, problem.startswith("manifest.json: format_version: ")) == ("unreadable", True)


def test_every_byte_is_verified(run: RunDirectory) -> None:
    assert [(entry.step, entry.problem) for entry in verify_checkpoints(run)] == [(3, None), (2, None)]
    file = run.checkpoints / directory_name(2) / "critic.optim-00000-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    whole, damaged = verify_checkpoints(run)
    assert whole.problem is None
    assert damaged.problem.startswith(f"{file.name}: the xxh3-128 digest of its bytes ")
    assert [entry.step for entry in verify_checkpoints(run, at=3)] == [3]
    with pytest.raises(NothingThereError, match="no checkpoint of step 1"):
        list(verify_checkpoints(run, at=1))


def pruned(run: RunDirectory, *, dry_run: bool) -> dict[int, tuple[bool, bool, tuple[str, ...]]]:
    found = prune_checkpoints(run, Policy(keep_last=1), dry_run=dry_run, rows=read_rows(run.metrics_path))
    return {entry.step: (entry.stays, entry.removed, entry.reasons) for entry in found}


def test_a_dry_run_says_what_a_prune_then_does(run: RunDirectory) -> None:
    stays = (True, False, ("the newest verified one",))
    assert pruned(run, dry_run=True) == {3: stays, 2: (False, False, ())}
    pin_checkpoint(run, "mine", 2)
    assert pruned(run, dry_run=False) == {3: stays, 2: (True, False, ("pinned as mine",))}
    assert unpin_checkpoint(run, "mine") == 2
    assert pruned(run, dry_run=False) == {3: stays, 2: (False, True, ())}
    assert [entry.step for entry in listed(run)] == [3]


def test_nothing_is_pruned_under_a_training_process(run: RunDirectory) -> None:
    with run.lock():
        pruned(run, dry_run=True)
        with pytest.raises(RefusedError, match=f"in use by process {os.getpid()}"):
            pruned(run, dry_run=False)
    assert [entry.step for entry in listed(run)] == [3, 2]


def test_a_pin_needs_a_checkpoint(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NothingThereError, match="no checkpoint of step 1"):
        pin_checkpoint(run, "mine", 1)
    pin_checkpoint(run, "mine", 3)
    pin_checkpoint(run, "mine", 3)
    with pytest.raises(RefusedError, match="step 3 is pinned as mine"):
        pin_checkpoint(run, "mine", 2)
    assert [entry.pins for entry in listed(run)] == [("mine",), ()]
