"""A run's small files: attempts, config, and whose directory it is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempts import config_of, train_here
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.runs.directory import RunDirectory
from yaoki.runs.records import AttemptEnd, AttemptRecord, AttemptStart, RunSummary, StartRecord

SUMMARY = RunSummary(
    steps=3,
    attempts=1,
    accuracy_before=0.25,
    accuracy_after=None,
    best_accuracy=None,
    best_step=0,
    num_rollouts=48,
    num_tokens=200,
    train_seconds=1.5,
)


def start_of(attempt: int, pid: int = 10) -> AttemptStart:
    return AttemptStart(attempt=attempt, started_unix_s=1.5 * attempt, pid=pid, num_workers=2)


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
    directory.write_summary(SUMMARY)
    assert directory.summary() == SUMMARY
    assert directory.recorded_start() is None
    directory.record_start(StartRecord(environment="e", fingerprint={"policy.params": "f"}))
    assert directory.recorded_start() == StartRecord(environment="e", fingerprint={"policy.params": "f"})


def test_the_final_accuracy_belongs_to_the_last_step(directory: RunDirectory) -> None:
    assert directory.final_accuracy() is None
    directory.write_summary(SUMMARY)
    assert directory.final_accuracy() is None, "it was not measured"
    directory.write_summary(SUMMARY.model_copy(update={"accuracy_after": 0.75}))
    assert directory.final_accuracy() == (3, 0.75)


@pytest.mark.parametrize("version", [1, 3, None])
def test_a_run_of_another_format_version_is_refused_and_not_touched(
    version: int | None, directory: RunDirectory, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    """Before anything else of it is read: its config may have other settings."""
    facts = json.loads((directory.path / "run.json").read_text())
    (directory.path / "run.json").write_text(json.dumps(facts | {"format_version": version}))
    directory.config_path.write_text('{"train": {"algorithm": "ppo"}}')
    before = contents(directory.path)
    uses: list[Callable[[], object]] = [
        directory.require_run,
        directory.stored_config,
        lambda: directory.run_id,
        lambda: directory.parent,
        lambda: train_here(directory.path, config_of()),
    ]
    for has_begun in (False, True):
        if has_begun:
            (directory.path / "start.json").write_text("{}")
            before = contents(directory.path)
        for use in uses:
            with pytest.raises(
                RefusedError, match=f"a run of format version {version}, this is version 2"
            ) as caught:
                use()
            assert "start a new run with --run" in str(caught.value.hint)
        assert contents(directory.path) == before


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
    directory.log_attempt(start_of(1, pid=10))
    directory.log_attempt(start_of(2, pid=20))
    directory.log_attempt(AttemptEnd(outcome="stopped", reason="asked", ended_unix_s=9.0))
    directory.log_attempt(start_of(3, pid=30))
    started = {"num_workers": 2}
    assert directory.attempts() == [
        AttemptRecord(attempt=1, started_unix_s=1.5, pid=10, outcome="killed", **started),
        AttemptRecord(
            attempt=2, started_unix_s=3, pid=20, outcome="stopped", reason="asked", ended_unix_s=9, **started
        ),
        AttemptRecord(attempt=3, started_unix_s=4.5, pid=30, outcome="killed", **started),
    ]


def test_a_torn_line_is_left_out_and_does_not_swallow_the_next(directory: RunDirectory) -> None:
    directory.log_attempt(start_of(1))
    directory.log_attempt(start_of(2))
    path = directory.path / "attempts.jsonl"
    for cut in range(1, len(path.read_bytes().splitlines(keepends=True)[-1])):
        path.write_bytes(path.read_bytes()[:-1])
        assert [attempt.attempt for attempt in directory.attempts()] == [1], cut

    path.write_bytes(path.read_bytes() + b'{"attempt": 2, "p')
    directory.log_attempt(start_of(2, pid=21))
    directory.log_attempt(AttemptEnd(outcome="finished", ended_unix_s=9.0))
    assert [attempt.outcome for attempt in directory.attempts()] == ["killed", "finished"]
    assert directory.attempts()[1].pid == 21


@pytest.mark.parametrize(
    "line",
    [
        '{"outcome": "finished", "ended_unix_s": 1.0}',  # an end without a start
        '{"attempt": 1, "pid": 10}',
        '{"attempt": "1", "started_unix_s": 1.0, "pid": 10, "num_workers": 1}',
        '{"attempt": 1, "started_unix_s": 1.0, "pid": 10, "num_workers": 1, "color": "red"}',
    ],
)
def test_a_line_that_is_no_attempts_is_named(line: str, directory: RunDirectory) -> None:
    (directory.path / "attempts.jsonl").write_text(line + "\n")
    with pytest.raises(CorruptCheckpointError, match=r"attempts\.jsonl: a line is not an attempt's"):
        directory.attempts()


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
