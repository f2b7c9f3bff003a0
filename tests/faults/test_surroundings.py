"""What happens around a run: its directory is copied meanwhile, its disk is read-only, the clock jumps."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.harness import (
    Ended,
    assert_same_run,
    make_config,
    run,
    start,
    wait_for_step,
)
from tests.support.shared import UnbrokenRuns
from tests.support.snapshots import INFO, small_snapshot
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.retention import Policy
from yaoki.commands.status import run_status
from yaoki.runs.directory import RunDirectory
from yaoki.train.trackers import TensorBoard

from .ext4 import CannotMount, make_image, mounted
from .resumes import TINY

STEPS = 6
CONFIG = make_config(*TINY, f"train.steps={STEPS}")


@pytest.fixture
def unbroken(unbroken_run: UnbrokenRuns) -> Path:
    return unbroken_run(CONFIG)


def test_a_directory_that_was_copied_while_training(unbroken: Path, tmp_path: Path) -> None:
    """A copy is no snapshot. It goes on to the same end, or it is refused with a reason."""
    path = tmp_path / "run"
    process = start(path, CONFIG)
    copies = []
    for step in (1, 4):
        wait_for_step(path, process, step)
        copies.append(tmp_path / f"copy-{step}")
        subprocess.run(["cp", "-r", str(path), str(copies[-1])], capture_output=True)
    process.join()
    for copy in copies:
        assert_same_or_refused(run(copy, CONFIG), copy, unbroken)


def assert_same_or_refused(ended: Ended, path: Path, unbroken: Path) -> None:
    if ended.exit_code == 0:
        assert_same_run(path, unbroken, STEPS)
    else:
        assert ended.exit_code in (3, 4), ended.log
        assert "error: " in ended.log
        assert "hint: " in ended.log


def test_the_clock_jumps_back_between_attempts(
    unbroken_run: UnbrokenRuns, unbroken: Path, tmp_path: Path
) -> None:
    """Nothing is chosen by time."""
    path = Path(shutil.copytree(unbroken_run(make_config(*TINY, "train.steps=3")), tmp_path / "run"))
    assert run(path, CONFIG, before=the_clock_says_1970).exit_code == 0
    assert_same_run(path, unbroken, STEPS)


def the_clock_says_1970() -> None:
    time.time = time.monotonic


def test_event_files_of_the_future_do_not_stop_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TensorBoard(tmp_path, print)
    first.resume_from(1)
    first.close()
    (events,) = tmp_path.iterdir()
    events.rename(tmp_path / events.name.replace(".tfevents.", ".tfevents.9"))
    slept_s = []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        assert sum(slept_s) < 3, "it waits for the future"

    monkeypatch.setattr(time, "sleep", sleep)
    second = TensorBoard(tmp_path, print)
    second.resume_from(2)
    second.close()


def test_checkpoints_are_chosen_and_pruned_by_step_never_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    for step, now_s in ((1, 5000.0), (2, 6000.0), (3, 1000.0), (4, -7.0)):
        monkeypatch.setattr(time, "time", lambda now_s=now_s: now_s)
        path = store.save(small_snapshot(step), step=step, info=INFO).path
        os.utime(path, (now_s + 10_000, now_s + 10_000))
    chosen = Catalog(tmp_path).choose().checkpoint
    assert chosen is not None
    assert chosen.manifest.step == 4
    removed = Catalog(tmp_path).prune(Policy(keep_last=2))
    assert [path.name for path in removed] == ["step-00000001", "step-00000002"]


def test_a_disk_that_is_read_only(unbroken: Path, tmp_path: Path) -> None:
    """Nobody trains there, and everybody may look."""
    try:
        image = make_image(tmp_path / "disk.img", size_bytes=256 << 20)
    except CannotMount as reason:
        pytest.skip(f"no read-only disk: {reason}")
    with mounted(image, tmp_path / "disk") as disk:
        path = Path(shutil.copytree(unbroken, disk / "run"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        longer = make_config(*TINY, f"train.steps={STEPS + 1}")
        process = start_elsewhere(path, longer, tmp_path)
        assert process.exit_code == 3, process.log
        assert "Read-only file system" in process.log
        assert run_status(RunDirectory(path)).attempts[-1].outcome == "finished"


def start_elsewhere(path: Path, config: object, tmp_path: Path) -> Ended:
    """The harness keeps its log beside the run; so the run is reached through a link on another disk."""
    link = tmp_path / "link"
    link.symlink_to(path)
    return run(link, config)
