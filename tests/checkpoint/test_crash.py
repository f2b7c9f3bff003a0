"""Real processes killed while they save and prune: what was acknowledged is never lost."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.snapshots import INFO, content, small_snapshot
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.layout import Kind
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import verify

STEPS = (1, 2, 2)
"""What a run saves: step 2 twice, as after a resume. The second one has another content."""


def state_of(index: int):
    return small_snapshot(100 + index)


def save_and_prune(directory: Path, acknowledge: Callable[[int], None]) -> None:
    store = CheckpointStore(directory)
    for index, step in enumerate(STEPS):
        store.save(state_of(index), step=step, info=INFO)
        acknowledge(index)
        store.prune(Policy(keep_last=1))


def run_in_child(directory: Path, wait: Callable[[int], None]) -> int:
    """Save and prune in a child; `wait` may kill it. Returns the number of acknowledged saves."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            save_and_prune(directory, lambda index: os.write(write_end, b"x") and None)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    wait(child)
    _, status = os.waitpid(child, 0)
    with open(read_end, "rb") as pipe:
        num_acknowledged = len(pipe.read())
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return num_acknowledged


def assert_nothing_is_lost(directory: Path, num_acknowledged: int) -> None:
    """The newest valid one is the last acknowledged or the one in flight; only unfinished are refused."""
    for candidate in Catalog(directory).candidates():
        if candidate.kind is not Kind.UNFINISHED:
            verify(candidate.path)  # nothing half written or half removed bears a checkpoint's name
    choice = Catalog(directory).choose()
    assert all(refusal.path.suffix == ".tmp" for refusal in choice.refusals)
    if choice.checkpoint is None:
        assert num_acknowledged == 0
        return
    found = content(load(choice.checkpoint.path).parts)
    allowed = [index for index in (num_acknowledged - 1, num_acknowledged) if 0 <= index < len(STEPS)]
    assert found in [content(state_of(index).parts) for index in allowed]
    assert choice.checkpoint.manifest.step in [STEPS[index] for index in allowed]


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_instants_and_resumed_until_done(tmp_path: Path, seed: int) -> None:
    """Each attempt works in the directory that the last one left."""
    randomness = random.Random(seed)

    def kill_soon(child: int) -> None:
        time.sleep(randomness.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)

    directory = tmp_path / "checkpoints"
    for _ in range(4):
        before = Catalog(directory).choose().checkpoint
        num_acknowledged = run_in_child(directory, kill_soon)
        choice = Catalog(directory).choose()
        assert choice.checkpoint is not None or (before is None and num_acknowledged == 0)
        if num_acknowledged and before is None:
            assert_nothing_is_lost(directory, num_acknowledged)
        if choice.checkpoint is not None:
            load(choice.checkpoint.path)
    save_and_prune(directory, lambda index: None)
    assert [path.name for path in directory.iterdir()] == ["step-00000002"]
