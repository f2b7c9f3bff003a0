"""Any step can be made a checkpoint again, with the bits that it had; the run itself stays as it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempts import STEPS, config_of, train_here
from tests.support.harness import assert_same_run, checkpoint_steps, final_state
from tests.support.shared import UnbrokenRuns
from yaoki.checkpoint.pins import Pins
from yaoki.commands.fork import fork
from yaoki.commands.replay import restore_step
from yaoki.errors import CorruptCheckpointError, DivergenceError, NothingThereError, RefusedError, UsageError
from yaoki.runs.directory import RunDirectory
from yaoki.train.console import Console

KEEP_ALL = "journal.keep=all"


def restore(path: Path, step: int) -> Path:
    with Console(0) as console:
        return restore_step(RunDirectory(path), step, console)


@pytest.fixture
def every_step(unbroken_run: UnbrokenRuns) -> Path:
    """The same run with a checkpoint of every step: what a restored one must equal."""
    return unbroken_run(config_of("checkpoint.every_steps=1"))


@pytest.fixture
def journaled(unbroken_run: UnbrokenRuns, tmp_path: Path) -> Path:
    """A finished run that has a checkpoint of its last step only, and its whole journal."""
    done = unbroken_run(config_of(KEEP_ALL, "checkpoint.every_steps=0"))
    path = Path(shutil.copytree(done, tmp_path / "run"))
    assert checkpoint_steps(path) == [STEPS]
    return path


def test_every_step_comes_back_bit_for_bit(
    journaled: Path, every_step: Path, finished: Path, tmp_path: Path
) -> None:
    rows = (journaled / "metrics.jsonl").read_bytes()
    for step in (2, 1):
        assert restore(journaled, step) == journaled / "checkpoints" / f"step-{step:08d}"
        assert final_state(journaled, step) == final_state(every_step, step)
    assert checkpoint_steps(journaled) == [1, 2, 3]
    assert Pins(journaled / "checkpoints").by_name() == {"restored-1": 1, "restored-2": 2}
    assert (journaled / "metrics.jsonl").read_bytes() == rows
    assert not (journaled / ".restoring").exists()
    (journaled / "checkpoints" / "step-00000003" / "manifest.json").unlink()
    (journaled / "summary.json").unlink()
    train_here(journaled, config_of(KEEP_ALL, "checkpoint.every_steps=0"))
    assert_same_run(journaled, finished, STEPS)


def test_a_step_that_was_computed_in_bfloat16_comes_back(tmp_path: Path) -> None:
    for name, every in (("every", 1), ("journaled", 0)):
        config = config_of("train.precision=bfloat16", KEEP_ALL, f"checkpoint.every_steps={every}")
        train_here(tmp_path / name, config)
    restore(tmp_path / "journaled", 2)
    assert final_state(tmp_path / "journaled", 2) == final_state(tmp_path / "every", 2)


def test_a_step_that_is_there_is_only_pinned(journaled: Path) -> None:
    restore(journaled, STEPS)
    assert checkpoint_steps(journaled) == [STEPS]
    assert Pins(journaled / "checkpoints").by_name() == {f"restored-{STEPS}": STEPS}


def test_step_0_comes_from_the_config(journaled: Path) -> None:
    restore(journaled, 0)
    assert checkpoint_steps(journaled) == [0, STEPS]


def test_a_fork_of_an_unsaved_step_trains_on(journaled: Path, tmp_path: Path) -> None:
    source, target = RunDirectory(journaled), RunDirectory(tmp_path / "fork")
    fork(source, 2, target, ["policy.lr=1e-4"], lambda: restore(journaled, 2))
    train_here(target.path, config_of(KEEP_ALL, "checkpoint.every_steps=0", "policy.lr=1e-4"))
    assert checkpoint_steps(target.path) == [2, STEPS]


def test_what_cannot_be_restored_is_said(journaled: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingThereError, match="no row of step 4, its last one is of step 3"):
        restore(journaled, 4)
    with pytest.raises(UsageError, match="step -1 does not exist"):
        restore(journaled, -1)
    with RunDirectory(journaled).lock(), pytest.raises(RefusedError, match="in use"):
        restore(journaled, 1)
    part = next((journaled / "rollouts" / "step-00000002").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(NothingThereError, match="does not hold all rollouts of step 2") as caught:
        restore(journaled, 2)
    assert "journal.keep" in str(caught.value.hint)
    assert checkpoint_steps(journaled) == [STEPS]
    assert not (journaled / ".restoring").exists()


def test_a_damaged_checkpoint_is_made_again(journaled: Path, finished: Path) -> None:
    """All that is left is the journal: exit code 4, then the way back."""
    (file, *_) = sorted((journaled / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (journaled / "summary.json").unlink()
    with pytest.raises(CorruptCheckpointError, match="no checkpoint that can be used") as caught:
        train_here(journaled, config_of(KEEP_ALL, "checkpoint.every_steps=0"))
    assert "yaoki restore RUN" in str(caught.value.hint)
    restore(journaled, STEPS)
    assert final_state(journaled, STEPS) == final_state(finished, STEPS)
    train_here(journaled, config_of(KEEP_ALL, "checkpoint.every_steps=0"))
    assert_same_run(journaled, finished, STEPS)


def test_other_bits_than_recorded_are_not_restored(journaled: Path) -> None:
    path = journaled / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace('"policy.params": "', '"policy.params": "0')
    path.write_text("".join(lines))
    with pytest.raises(DivergenceError, match="step 1 differs"):
        restore(journaled, 1)
    assert checkpoint_steps(journaled) == [STEPS]


def test_a_step_without_a_row_is_not_restored(journaled: Path) -> None:
    """Killed after the rollouts of a step and before its row: that step is for the run itself to do."""
    shutil.rmtree(journaled / "checkpoints" / f"step-{STEPS:08d}")
    (journaled / "summary.json").unlink()
    rows = (journaled / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (journaled / "metrics.jsonl").write_bytes(b"".join(rows[:-1]))
    with pytest.raises(NothingThereError, match=f"no row of step {STEPS}"):
        restore(journaled, STEPS)
    assert checkpoint_steps(journaled) == []
    assert restore(journaled, STEPS - 1).is_dir()


def test_rows_of_another_environment_are_not_matched(tmp_path: Path) -> None:
    """They cannot be compared, and the run could not resume from such a checkpoint."""
    path = tmp_path / "run"
    train_here(path, config_of(KEEP_ALL, "train.steps=2", "checkpoint.every_steps=0"))
    train_here(path, config_of(KEEP_ALL, "run.deterministic=false", "checkpoint.every_steps=0"))
    before = checkpoint_steps(path)
    with pytest.raises(DivergenceError, match="another environment"):
        restore(path, 1)
    assert checkpoint_steps(path) == before


def test_the_copy_at_the_url_is_left_alone(
    tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    path, bucket = tmp_path / "run", tmp_path / "bucket"
    overrides = [KEEP_ALL, "checkpoint.every_steps=0", f"run.storage=file://{bucket}", "run.max_seconds=1000"]
    train_here(path, config_of(*overrides))
    before = contents(bucket)
    restore(path, 1)
    assert contents(bucket) == before
