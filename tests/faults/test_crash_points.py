"""Each thing that a run does to its files, with a fault at one of its effects: the next start loses nothing.

A seeded sample runs always, every point with `pytest -m crash tests/faults`.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .children import Ended, Work, run_in_child
from .effects import FAULTS, Effect, Fault
from .scenario import Scenario
from .scenarios import SCENARIOS

Point = tuple[Effect, Fault]
NAMES = [scenario.name for scenario in SCENARIOS]


def run_well(root: Path, work: Work) -> Ended:
    """A child to which nothing happens."""
    ended = run_in_child(root, work)
    assert (ended.error, ended.bug, ended.died) == (None, None, False)
    return ended


def effects_of(scenario: Scenario, root: Path) -> list[Effect]:
    """Every effect of the undisturbed work."""
    ended = run_well(root, scenario.work)
    assert len(set(ended.effects)) == len(ended.effects)
    return ended.effects


def undisturbed_end(scenario: Scenario, root: Path) -> object:
    """What is there after the work and what the next process does."""
    run_well(root, scenario.go_on)
    return scenario.end(root)


def outcome_of(scenario: Scenario, root: Path, point: Point, end: object) -> str:
    """Let the fault happen, look, let the next process go on; says how it went."""
    effect, fault = point
    ended = run_in_child(root, scenario.work, point)
    assert ended.struck, "the effect did not occur this time"
    assert ended.bug is None, ended.bug
    assert ended.died == fault.is_death
    is_silent = ended.error is None
    assert is_silent or fault.is_error, f"an error for nothing: {ended}"
    assert not is_silent or not fault.is_error or effect.can_be_done_without, "the error was not told"
    found = scenario.check(root, ended.acknowledged)

    run_well(root, scenario.go_on)
    assert scenario.end(root) == end, "it does not come to the same end"
    return f"{_word(ended)}, {found}"


def _word(ended: Ended) -> str:
    if ended.died:
        return "killed"
    return "error told" if ended.error else "went on"


def run_points(
    scenario: Scenario, tmp_path: Path, choose: Callable[[list[Point]], list[Point]]
) -> dict[str, object]:
    """Every chosen point, each from the same beginning; a row of the report."""
    beginning = tmp_path / "beginning"
    beginning.mkdir()
    run_well(beginning, lambda root, acknowledge: scenario.prepare(root))
    reference = Path(shutil.copytree(beginning, tmp_path / "reference", symlinks=True))
    effects = effects_of(scenario, reference)
    end = undisturbed_end(scenario, reference)
    points = [(effect, fault) for effect in effects for fault in FAULTS[effect.kind]]
    outcomes: Counter[str] = Counter()
    for number, point in enumerate(chosen := choose(points)):
        root = Path(shutil.copytree(beginning, tmp_path / str(number), symlinks=True))
        try:
            outcomes[outcome_of(scenario, root, point, end)] += 1
        except AssertionError as error:
            raise AssertionError(f"{scenario.name}: {point[1]} at {point[0]}: {error}") from error
        shutil.rmtree(root)
    return {
        "scenario": scenario.name,
        "effects": len(effects),
        "points": len(points),
        "tried": len(chosen),
        "outcomes": dict(sorted(outcomes.items())),
    }


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_a_sample_of_the_points(
    scenario: Scenario, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    randomness = random.Random(scenario.name)

    def sample(points: list[Point]) -> list[Point]:
        return randomness.sample(points, min(scenario.num_sampled, len(points)))

    record_property("crash points", run_points(scenario, tmp_path, sample))


@pytest.mark.crash
@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_every_point(
    scenario: Scenario, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("crash points", run_points(scenario, tmp_path, lambda points: points))
