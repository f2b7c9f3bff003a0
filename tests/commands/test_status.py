"""`status`: what it says of attempts, checkpoints and journal, and whether a resume does what it said."""

import io
import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.attempts import (
    STEPS,
    config_of,
    die_while_generating,
    shown_by,
    train_and_signal,
    train_here,
)
from yaoki.checkpoint.layout import directory_name
from yaoki.checkpoint.pins import Pins
from yaoki.cli.render import json_text
from yaoki.cli.reports import describe_status
from yaoki.commands.status import run_status
from yaoki.errors import CorruptCheckpointError, StopRequested
from yaoki.runs.directory import RunDirectory


def status_of(path: Path, *, read_all: bool = False) -> dict:
    """As `--json` prints it."""
    return json.loads(json_text(run_status(RunDirectory(path), read_all=read_all)))


def test_a_finished_run(finished: Path) -> None:
    found = status_of(finished)
    assert found["resume"]["finished"]
    assert [attempt["num_steps"] for attempt in found["attempts"]] == [STEPS]
    assert found["parent"] is None
    assert found["journal"]["last_step"] == STEPS


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """Three attempts: stopped in step 2, killed in step 5, killed in step 6; one checkpoint, of step 1."""
    path = tmp_path_factory.mktemp("interrupted") / "run"
    config = config_of("train.steps=6", "checkpoint.every_steps=0", "journal.flush_seconds=0")
    with pytest.raises(StopRequested):
        train_and_signal(path, config, signal.SIGTERM, step=2)
    assert die_while_generating(path, config, signal.SIGKILL, step=4) == -signal.SIGKILL
    assert die_while_generating(path, config, signal.SIGKILL, step=2) == -signal.SIGKILL
    return path


def test_why_each_attempt_ended_and_how_far_it_came(interrupted: Path) -> None:
    attempts = status_of(interrupted)["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["stopped", "killed", "killed"]
    assert "SIGTERM" in attempts[0]["reason"]
    assert attempts[0]["ended_unix_s"] >= attempts[0]["started_unix_s"]


def test_a_resume_does_what_status_said(interrupted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    said = status_of(run)["resume"]
    assert (said["checkpoint"], said["grade"]) == (directory_name(1), "exact")
    assert said["num_replayed_steps"] > 0
    shown = shown_by(run, config_of("train.steps=6", "checkpoint.every_steps=0", "journal.flush_seconds=0"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()][1:]
    reused = [row["timing"]["num_reused_rollouts"] for row in rows]
    num_replayed = said["num_replayed_steps"]
    assert reused == [16] * num_replayed + [said["num_reused_rollouts"]] + [0] * (
        len(reused) - num_replayed - 1
    )
    assert re.search("resuming from step-00000001", shown)


def test_rows_that_were_edited_are_found_where_all_is_read(unfinished: Path) -> None:
    metrics = unfinished / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"reward": 0', b'"reward": 1', 1))
    resume = status_of(unfinished, read_all=True)["resume"]
    assert not resume["possible"]
    assert "metrics.jsonl does not begin with the" in resume["problem"]
    with pytest.raises(CorruptCheckpointError, match=r"metrics\.jsonl: it does not begin with"):
        train_here(unfinished, config_of())


def test_how_many_workers_the_grade_is_for(unfinished: Path) -> None:
    found = run_status(RunDirectory(unfinished))
    assert found.resume.num_workers == 1
    assert "grade exact; judged by its sizes" in describe_status(found)
    two = replace(found, resume=replace(found.resume, num_workers=2))
    assert "grade exact by 2 workers, as many as wrote it" in describe_status(two)


def test_without_a_journal_nothing_is_replayed(unfinished: Path) -> None:
    shutil.rmtree(unfinished / "rollouts")
    resume = status_of(unfinished)["resume"]
    assert (resume["step"], resume["num_replayed_steps"], resume["num_reused_rollouts"]) == (2, 0, 0)


def test_parts_of_another_config_and_broken_ones_do_not_count(unfinished: Path) -> None:
    assert status_of(unfinished)["resume"]["num_replayed_steps"] == 1
    parts = sorted((unfinished / "rollouts" / directory_name(3)).iterdir())
    for part in parts:
        part.write_bytes(b"PAR1")
    assert status_of(unfinished)["resume"]["num_replayed_steps"] == 0


def test_damage_that_sizes_show_is_seen_at_once_and_other_damage_on_request(copied: Path) -> None:
    file = copied / "checkpoints" / directory_name(STEPS) / "policy.params-00000-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert status_of(copied)["resume"]["checkpoint"] == directory_name(STEPS)
    found = status_of(copied, read_all=True)["resume"]
    assert found["checkpoint"] == directory_name(2)
    assert "digest" in found["refused"][0]
    file.write_bytes(data[:-1])
    assert status_of(copied)["resume"]["checkpoint"] == directory_name(2)


def test_nothing_is_touched(copied: Path, contents) -> None:
    before = contents(copied)
    Pins(copied / "checkpoints").set("p", 2)
    (copied / "checkpoints" / "pins.json").unlink()
    status_of(copied, read_all=True)
    assert contents(copied) == before


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    config = config_of("checkpoint.every_steps=0")
    assert die_while_generating(tmp_path / "run", config, signal.SIGKILL, step=1) == -signal.SIGKILL
    found = status_of(tmp_path / "run")
    assert found["checkpoints"] == []
    resume = found["resume"]
    assert (resume["grade"], resume["checkpoint"], resume["step"]) == ("fresh", None, 0)
    train_here(tmp_path / "run", config, io.StringIO())
