"""A run's small files: attempts, config, and whose directory it is."""

import json
import os
from pathlib import Path

import pytest

from tests.support.attempts import config_of
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.runs.directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(config_of())
    return directory


def test_a_new_run(directory: RunDirectory) -> None:
    assert directory.exists
    directory.require_run()
    assert directory.stored_config() == config_of()
    assert directory.run_id.startswith("run-")
    assert directory.attempts() == []
    assert directory.summary() is None
    directory.write_summary({"steps": 3})
    assert directory.summary() == {"steps": 3}


def test_two_runs_have_two_ids(directory: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "other" / "run")
    other.create(config_of())
    assert other.run_id != directory.run_id


def test_the_id_of_a_run_is_unicode_whatever_its_directory_is_called(tmp_path: Path) -> None:
    """It goes into every manifest, as JSON."""
    directory = RunDirectory(tmp_path / os.fsdecode(b"k\xe4se"))
    directory.create(config_of())
    assert directory.run_id.startswith("k?se-")


def test_there_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        assert not RunDirectory(path).exists
        with pytest.raises(NothingThereError, match="there is no run") as caught:
            RunDirectory(path).require_run()
        assert "yaoki train" in str(caught.value.hint)


def test_checkpoints_without_a_run_are_not_nothing(directory: RunDirectory) -> None:
    """Never a fresh start, nor advice to empty the directory."""
    (directory.checkpoints / "step-00000004").mkdir(parents=True)
    (directory.path / "run.json").unlink()
    for use in (directory.require_run, lambda: directory.create(config_of())):
        with pytest.raises(CorruptCheckpointError, match=r"run\.json is missing") as caught:
            use()
        assert "put it back" in str(caught.value.hint)


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RefusedError, match=r"holds no run: .*thesis\.tex") as caught:
        RunDirectory(tmp_path).create(config_of())
    assert "--run" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("leftover", ["lock", "config.json", "config.json.tmp", "run.json.tmp"])
def test_a_start_that_was_killed_can_be_started_again(leftover: str, tmp_path: Path) -> None:
    (tmp_path / leftover).write_text("{")
    RunDirectory(tmp_path).create(config_of())
    assert RunDirectory(tmp_path).stored_config() == config_of()


def test_attempts(directory: RunDirectory) -> None:
    directory.log_attempt({"attempt": 1, "pid": 10})
    directory.log_attempt({"attempt": 2, "pid": 20})
    directory.log_attempt({"outcome": "stopped", "reason": "asked"})
    directory.log_attempt({"attempt": 3, "pid": 30})
    assert directory.attempts() == [
        {"attempt": 1, "pid": 10, "outcome": "killed"},
        {"attempt": 2, "pid": 20, "outcome": "stopped", "reason": "asked"},
        {"attempt": 3, "pid": 30, "outcome": "killed"},
    ]


def test_a_torn_line_is_left_out_and_does_not_swallow_the_next(directory: RunDirectory) -> None:
    directory.log_attempt({"attempt": 1, "pid": 10})
    directory.log_attempt({"attempt": 2, "pid": 20})
    path = directory.path / "attempts.jsonl"
    for cut in range(1, len(path.read_bytes().splitlines(keepends=True)[-1])):
        path.write_bytes(path.read_bytes()[:-1])
        assert [attempt["attempt"] for attempt in directory.attempts()] == [1], cut

    path.write_bytes(path.read_bytes() + b'{"attempt": 2, "p')
    directory.log_attempt({"attempt": 2, "pid": 21})
    directory.log_attempt({"outcome": "finished"})
    assert [attempt["outcome"] for attempt in directory.attempts()] == ["killed", "finished"]


@pytest.mark.parametrize("name", ["run.json", "attempts.jsonl"])
def test_a_broken_file_is_named(name: str, directory: RunDirectory) -> None:
    (directory.path / name).write_text("{broken\n")
    with pytest.raises(CorruptCheckpointError, match=name):
        print(directory.run_id, directory.attempts())


def test_the_stored_config_is_replaced_whole(directory: RunDirectory) -> None:
    (directory.path / "config.json.tmp").write_text("left by a crash")
    directory.store_config(config_of("train.steps=9"))
    assert directory.stored_config().train.steps == 9
    assert sorted(path.name for path in directory.path.iterdir()) == ["config.json", "run.json"]
    assert json.loads(directory.config_path.read_text())["train"]["steps"] == 9
