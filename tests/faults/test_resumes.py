"""A whole resume with a fault at one of its effects: the attempt after it ends as the unbroken run did.

A seeded sample runs always; every one of them with `pytest -m crash tests/faults`.
"""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.harness import Ended, assert_same_run, run_to_end
from tests.support.shared import UnbrokenRuns

from . import resumes
from .effects import FAULTS, Effect, Fault

NUM_SAMPLED = 5
NUM_SHARES = 8
Point = tuple[Effect, Fault]
RecordProperty = Callable[[str, object], None]


@dataclass(frozen=True)
class Runs:
    """Nobody may write into them."""

    unbroken: Path
    killed: Path
    resumed: Path
    """By an attempt to which nothing happened."""
    effects: list[Effect]
    """Of that attempt."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, unbroken_run: UnbrokenRuns) -> Runs:
    folder, unbroken = tmp_path_factory.mktemp("runs"), unbroken_run(resumes.CONFIG)
    resumes.make_killed_run(folder / "killed")
    resumed = resumes.copy(folder / "killed", folder / "resumed")
    ended = resumes.resume(resumed)
    assert ended.exit_code == 0, ended.log
    assert_recovered(resumed, unbroken)
    return Runs(unbroken, folder / "killed", resumed, resumes.effects(resumed))


def assert_recovered(path: Path, unbroken: Path) -> None:
    assert_same_run(path, unbroken, resumes.STEPS)
    assert resumes.sampled_twice(path) == []


def outcome_of(runs: Runs, path: Path, point: Point) -> str:
    """Let the fault happen to an attempt, then let another one do what is left; says how it went."""
    effect, fault = point
    resumes.copy(runs.killed, path)
    ended = resumes.resume(path, point)
    was_struck = resumes.was_struck(path)
    if was_struck and fault.is_death:
        assert ended.exit_code == -9, ended.log
    elif was_struck and fault.is_error and (ended.exit_code or not may_be_silent(effect)):
        assert_error_was_told(ended)  # a disk that is full stays so: what comes after is told
    else:
        assert ended.exit_code == 0, ended.log
    shutil.rmtree(path / "tensorboard", ignore_errors=True)  # its writer would wait for a new second
    log = run_to_end(path, resumes.CONFIG)
    assert_recovered(path, runs.unbroken)
    assert set(resumes.names(path)) ^ set(resumes.names(runs.resumed)) == set()
    how = ("killed" if fault.is_death else "error told") if ended.exit_code else "went on"
    found = re.search(r"(already finished|resuming from [\w-]+)", log)
    return f"{how if was_struck else 'did not come to it'}, then {found[1] if found else 'from the start'}"


def may_be_silent(effect: Effect) -> bool:
    """What the lock file says is for eyes."""
    return effect.can_be_done_without or (effect.path == "lock" and effect.kind != "open")


def assert_error_was_told(ended: Ended) -> None:
    """An error of ours, or one of the system that names its file, as the command line shows it."""
    assert ended.exit_code in (1, 3), ended.log
    last = ended.log.splitlines()[-1]
    assert "error: " in ended.log or re.match(r"\w+Error: \[Errno \d+\] .*: '/", last), ended.log


def run_points(runs: Runs, tmp_path: Path, points: Sequence[Point], num_points: int) -> dict[str, object]:
    """Each from the same killed run; a row of the report."""
    outcomes: Counter[str] = Counter()
    failures = []
    for number, point in enumerate(points):
        path = tmp_path / str(number) / "run"
        path.parent.mkdir()
        try:
            outcomes[outcome_of(runs, path, point)] += 1
        except AssertionError as error:
            failures.append(f"{point[1]} at {point[0]}: {error}")
        shutil.rmtree(path.parent)
    assert not failures, "\n\n".join([f"{len(failures)} of {len(points)} points", *failures])
    return {
        "scenario": "a whole resume",
        "effects": len(runs.effects),
        "points": num_points,
        "tried": len(points),
        "outcomes": dict(sorted(outcomes.items())),
    }


def points_of(runs: Runs, wanted: Callable[[Fault], bool]) -> list[Point]:
    return [(effect, fault) for effect in runs.effects for fault in FAULTS[effect.kind] if wanted(fault)]


def test_a_sample_of_the_points(runs: Runs, tmp_path: Path, record_property: RecordProperty) -> None:
    points = points_of(runs, lambda fault: True)
    sample = random.Random(0).sample(points, NUM_SAMPLED)
    record_property("crash points", run_points(runs, tmp_path, sample, len(points)))


@pytest.mark.crash
@pytest.mark.parametrize("share", range(NUM_SHARES))
@pytest.mark.parametrize("is_death", [True, False])
def test_every_point(
    is_death: bool, share: int, runs: Runs, tmp_path: Path, record_property: RecordProperty
) -> None:
    """In shares, for machines with several cores."""
    points = points_of(runs, lambda fault: fault.is_death == is_death)
    record_property("crash points", run_points(runs, tmp_path, points[share::NUM_SHARES], len(points)))
