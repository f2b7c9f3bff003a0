"""A checkpoint is written while training goes on, and holds the boundary that it was begun at."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.faulty_os import Gate, replace_os, use_small_blocks
from tests.support.snapshots import content
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.store import Committed
from yaoki.errors import YaokiError

from .training import Training, state_at


def saved_steps(directory: Path) -> list[int]:
    """Every checkpoint is whole and holds its own boundary."""
    steps = []
    for path in sorted(directory.iterdir()):
        if path.suffix != ".tmp":
            loaded = load(path)
            assert content(loaded.parts) == state_at(loaded.manifest.step)
            steps.append(loaded.manifest.step)
    return steps


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A disk that is slow: nothing is written until the gate is opened."""
    gate = Gate()
    replace_os(monkeypatch, write=gate.write)
    yield gate
    gate.open()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def finishing(*trainings: Training) -> None:
    for training in trainings:
        training.checkpointer.finish()


@pytest.mark.parametrize("on_overrun", ["wait", "copy"])
def test_each_checkpoint_is_its_boundary_though_every_update_overwrites_everything(
    tmp_path: Path, on_overrun: str
) -> None:
    with (training := Training(tmp_path, on_overrun=on_overrun)).checkpointer:
        training.update()
        training.boundary()
        for _ in range(3):
            training.next_step()
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [1, 2, 3, 4]
    assert [step for step, _ in training.told] == [1, 2, 3, 4]


def test_an_optimizer_before_its_first_step_is_saved_too(tmp_path: Path) -> None:
    with (training := Training(tmp_path)).checkpointer:
        training.boundary(is_last=True)
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [0]


def test_training_goes_on_while_the_disk_is_slow_and_waits_only_before_the_update(
    tmp_path: Path, gate: Gate
) -> None:
    with (training := Training(tmp_path)).checkpointer:
        training.update()
        training.boundary()  # returns though nothing can be written
        assert gate.reached.wait(60)
        released = in_thread(training.checkpointer.release)
        released.join(0.05)
        assert released.is_alive(), "the update would change what is still to be written"
        gate.open()
        released.join(60)
        training.update()
        training.checkpointer.finish()
        assert training.checkpointer.take_stall_s() > 0
        assert training.checkpointer.take_stall_s() == 0
    assert saved_steps(tmp_path) == [1]


@pytest.mark.parametrize("num_written", [0, 3, 9])
def test_with_copies_the_update_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    gate = Gate(num_written)
    replace_os(monkeypatch, write=gate.write)
    with (training := Training(tmp_path, on_overrun="copy")).checkpointer:
        training.update()
        training.boundary()
        assert gate.reached.wait(60)
        training.checkpointer.release()  # returns though nothing can be written
        training.update()
        gate.open()
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [1]


def test_copies_take_no_more_memory_than_allowed(tmp_path: Path, gate: Gate) -> None:
    with (training := Training(tmp_path, on_overrun="copy", copy_memory_gb=1e-9)).checkpointer:
        training.update()
        training.boundary()
        released = in_thread(training.checkpointer.release)
        released.join(0.05)
        assert released.is_alive()
        gate.open()
        released.join(60)
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [1]


def test_a_second_save_that_falls_due_comes_after_the_first(tmp_path: Path, gate: Gate) -> None:
    with (training := Training(tmp_path, on_overrun="copy")).checkpointer:
        training.update()
        training.boundary()
        training.next_step()  # due again, and the first one has written nothing yet
        released = in_thread(training.checkpointer.release)
        released.join(0.05)
        assert released.is_alive(), "only one save at a time takes memory for copies"
        gate.open()
        released.join(60)
        training.update()
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [1, 2]


def test_what_is_saved_is_told_on_the_thread_that_trains(tmp_path: Path) -> None:
    with (training := Training(tmp_path)).checkpointer:
        training.boundary(is_last=True)
        training.checkpointer.save_held()
        assert training.told == [(0, threading.current_thread().name)]
        training.checkpointer.finish()
    assert len(training.told) == 1


def test_rows_are_durable_before_the_checkpoint_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path)

    def recorded(source: Path, target: Path) -> None:
        training.events.append(f"commit {target.name}")
        os.replace(source, target)

    replace_os(monkeypatch, replace=recorded)
    with training.checkpointer:
        training.boundary(is_last=True)
        training.checkpointer.finish()
    assert training.events == ["rows are durable", "commit step-00000000"]


def failing(number: int, *, after: int = 1) -> Callable[..., int]:
    """`os.write` on a disk that gives up after so many writes."""
    num_left = after

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise OSError(number, os.strerror(number))
        return os.write(descriptor, data)

    return write


def fail_at_release(training: Training) -> None:
    training.checkpointer.release()
    training.checkpointer.finish()  # with copies the window may have ended before anything was known


def fail_at_next_boundary(training: Training) -> None:
    training.checkpointer._saves[0].checked.exception()  # over, but nobody has asked
    training.boundary()


def fail_at_stop(training: Training) -> None:
    training.checkpointer.save_held()


def fail_at_end(training: Training) -> None:
    training.checkpointer.finish()


@pytest.mark.parametrize("ask", [fail_at_release, fail_at_next_boundary, fail_at_stop, fail_at_end])
@pytest.mark.parametrize("on_overrun", ["wait", "copy"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_is_raised_at_the_next_call_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask, on_overrun: str, number: int
) -> None:
    with (training := Training(tmp_path, on_overrun=on_overrun)).checkpointer:
        training.update()
        training.boundary()
        training.checkpointer.finish()
        training.next_step()
        training.checkpointer.finish()
        training.checkpointer.release()
        training.update()
        before = content(training.snapshot().parts)
        with monkeypatch.context() as patch:
            replace_os(patch, write=failing(number))
            training.boundary()
            with pytest.raises(YaokiError, match=rf"step-00000003.*: {os.strerror(number)}") as caught:
                ask(training)
        assert caught.value.hint
        assert content(training.snapshot().parts) == before
        assert saved_steps(tmp_path) == [1, 2]
        training.checkpointer.finish()  # it was told once

        training.boundary()  # the disk is well again
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [1, 2, 3]


def test_rows_that_cannot_be_made_durable_are_a_failure_too(tmp_path: Path) -> None:
    training = Training(tmp_path)

    def fail() -> None:
        raise OSError(errno.EIO, "no rows", "metrics.jsonl")

    training.checkpointer._sync_metrics = fail
    with training.checkpointer:
        training.boundary(is_last=True)
        with pytest.raises(OSError, match="no rows"):
            training.checkpointer.release()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_does_not_read_back_is_a_failure_and_lets_nothing_older_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(descriptor: int, data: memoryview) -> int:
        damaged = bytearray(data)
        damaged[-1] ^= 1
        return os.write(descriptor, damaged)

    with (training := Training(tmp_path, keep_last=1)).checkpointer:
        training.update()
        training.boundary()
        training.checkpointer.finish()
        training.checkpointer.release()
        training.update()
        replace_os(monkeypatch, write=flip)
        training.boundary()
        with pytest.raises(YaokiError, match="step-00000002 does not read back"):
            training.checkpointer.finish()
        assert [step for step, _ in training.told] == [1]
    choice = Catalog(tmp_path).choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.manifest.step == 1


def test_the_read_back_holds_up_neither_the_update_nor_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path)
    begun, may_end = threading.Event(), threading.Event()

    def read_back(*_: object) -> None:
        begun.set()
        assert may_end.wait(60)

    monkeypatch.setattr(training.store, "read_back", read_back)
    with training.checkpointer:
        training.boundary(is_last=True)
        assert begun.wait(60)
        training.checkpointer.release()
        training.checkpointer.save_held()
        assert training.told
        may_end.set()
        training.checkpointer.finish()


def test_older_ones_go_only_after_the_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, keep_last=1)
    steps_then: list[list[int]] = []
    read_back = training.store.read_back

    def recorded(*arguments) -> None:
        steps_then.append([candidate.step for candidate in Catalog(tmp_path).candidates()])
        read_back(*arguments)

    monkeypatch.setattr(training.store, "read_back", recorded)
    with training.checkpointer:
        training.boundary(is_last=True)
        training.next_step()
        training.checkpointer.finish()
    assert steps_then == [[0], [1, 0]]
    assert saved_steps(tmp_path) == [1]


def test_a_stop_inside_the_window_saves_the_boundary_at_hand(tmp_path: Path) -> None:
    with (training := Training(tmp_path, every_steps=100)).checkpointer:
        training.update()
        training.boundary()
        assert saved_steps(tmp_path) == []
        training.checkpointer.save_held()
        assert saved_steps(tmp_path) == [1]
        training.checkpointer.save_held()
        assert [step for step, _ in training.told] == [1]


def test_a_stop_does_not_wait_for_the_read_back_of_an_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, every_steps=2, keep_last=1)
    begun = threading.Event()

    def read_back(committed: Committed, poll: Callable[[], None]) -> None:
        """A slow one: it only ends because it is not wanted any more."""
        if committed.saved.step == 3:
            return
        begun.set()
        while True:
            poll()
            time.sleep(0.001)

    monkeypatch.setattr(training.store, "read_back", read_back)
    with training.checkpointer:
        training.update()
        training.next_step()  # due
        training.next_step()  # not due
        assert begun.wait(60)
        training.checkpointer.save_held()
        assert [step for step, _ in training.told] == [2, 3]
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [3]


def test_a_stop_during_the_update_waits_for_what_was_begun_and_saves_no_half_of_a_step(
    tmp_path: Path, gate: Gate
) -> None:
    with (training := Training(tmp_path, on_overrun="copy")).checkpointer:
        training.update()
        training.boundary()
        training.checkpointer.release()
        training.weights["half"].fill_(99)  # half of an update
        stopping = in_thread(training.checkpointer.save_held)
        stopping.join(0.05)
        assert stopping.is_alive()
        gate.open()
        stopping.join(60)
        assert saved_steps(tmp_path) == [1]


def test_once_the_window_has_ended_there_is_nothing_to_save(tmp_path: Path) -> None:
    with (training := Training(tmp_path, every_steps=100)).checkpointer:
        training.update()
        training.boundary()
        training.checkpointer.release()
        training.weights["half"].fill_(99)  # half of an update
        training.checkpointer.save_held()
    assert not list(tmp_path.iterdir())


def test_only_due_boundaries_are_saved(tmp_path: Path) -> None:
    with (training := Training(tmp_path, every_steps=2)).checkpointer:
        training.boundary()
        for _ in range(5):
            training.next_step()
        training.checkpointer.release()
        training.checkpointer.finish()
    assert saved_steps(tmp_path) == [2, 4]


def test_leaving_gives_up_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(num_free_writes=3)
    replace_os(monkeypatch, write=gate.write)
    training = Training(tmp_path)

    def fail_elsewhere() -> None:
        with training.checkpointer:
            training.boundary(is_last=True)
            assert gate.reached.wait(60)
            threading.Timer(0.05, gate.open).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_elsewhere()
    assert not list(tmp_path.iterdir()), "nothing is left of it"


EXIT_WHILE_WRITING = """
    import sys
    from pathlib import Path
    import pytest
    from tests.support.faulty_os import Gate, replace_os, use_small_blocks
    from tests.checkpoint.training import Training
    from yaoki.checkpoint.io import checkpointer

    patch = pytest.MonkeyPatch()
    patch.setattr(checkpointer, "_CANCEL_TIMEOUT_S", 1.0)
    use_small_blocks(patch)
    training = Training(Path(sys.argv[1]))
    training.boundary(is_last=True)
    training.checkpointer.finish()
    gate = Gate(num_free_writes=3)
    replace_os(patch, write=gate.write)
    training.checkpointer.release()
    training.update()
    with training.checkpointer:
        training.boundary()
        assert gate.reached.wait(60)
        raise SystemExit(7)
"""


@pytest.mark.processes
def test_a_process_leaves_though_the_disk_hangs_and_the_last_checkpoint_is_chosen(tmp_path: Path) -> None:
    code = textwrap.dedent(EXIT_WHILE_WRITING)
    left = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], timeout=50, cwd=Path(__file__).parents[2]
    )
    assert left.returncode == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000000", "step-00000001.tmp"]
    choice = Catalog(tmp_path).choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.manifest.step == 0
