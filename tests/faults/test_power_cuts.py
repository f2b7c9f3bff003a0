"""Each thing that a run does to its files, with the power cut after an effect: what was promised is there.

The disk is the model in durability.py, each cut in several variants of what survives of the unsynced. The
program may also have been killed before, and have begun anew on names that nobody has synced since.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import yaoki.fs

from .children import Acknowledge
from .durability import Disk, Tree, write_tree
from .effects import Entry
from .recorder import Recorder
from .scenario import Scenario, tree
from .scenarios import SCENARIOS

NAMES = [scenario.name for scenario in SCENARIOS]
NUM_RANDOM = 4
"""Random choices of what survives, at each cut."""
NUM_SAMPLED = 40
NUM_SAMPLED_KILLS = 6
Work = Callable[[Path, Acknowledge], None]
RecordProperty = Callable[[str, object], None]


@dataclass(frozen=True)
class Cut:
    """What a power cut leaves, and what had been promised before."""

    where: str
    survivor: Tree
    promises: tuple[str, ...]


def record(root: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Do the work; every effect and every promise, in order."""
    recorder = Recorder(root)
    with monkeypatch.context() as patch:
        patch.setattr(yaoki.fs, "os", recorder)
        work(root, recorder.promise)
    return recorder.log


def cuts(before: Tree, log: list[Entry], earlier: int = 0) -> Iterator[Cut]:
    """Every cut after the first `earlier` entries, in each variant."""
    disk = Disk(before)
    disk.apply(log[:earlier])
    for length in range(earlier, len(log) + 1):
        disk.apply(log[max(length - 1, earlier) : length])
        randomness = random.Random(length)
        survivors = [disk.all_lost(), disk.names_survive(), disk.lengths_survive(), disk.bytes_survive()]
        survivors += [disk.some_survive(randomness) for _ in range(NUM_RANDOM)]
        where = f"after {log[length - 1].effect}" if length else "before all"
        promises = tuple(entry.promise for entry in log[earlier:length] if entry.promise)
        for survivor in survivors:
            yield Cut(where, survivor, promises)


def distinct(found: Iterator[Cut]) -> list[Cut]:
    """Many cuts leave the same; one of each is enough."""
    return list({(tuple(cut.survivor.items()), cut.promises): cut for cut in found}.values())


def check_all(scenario: Scenario, found: list[Cut], tmp_path: Path) -> None:
    for number, cut in enumerate(found):
        root = write_tree(cut.survivor, tmp_path / f"cut-{number}")
        try:
            scenario.check(root, list(cut.promises))
        except Exception as error:
            raise AssertionError(f"{scenario.name}: power cut {cut.where}: {sorted(cut.survivor)}") from error


def beginning(scenario: Scenario, tmp_path: Path) -> Path:
    root = tmp_path / "work"
    root.mkdir()
    scenario.prepare(root)
    return root


def sampled(scenario: Scenario, found: list[Cut]) -> list[Cut]:
    return random.Random(scenario.name).sample(found, min(NUM_SAMPLED, len(found)))


def single_cuts(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cut]:
    root = beginning(scenario, tmp_path)
    before = tree(root)
    log = record(root, scenario.work, monkeypatch)
    whole = Disk(before)
    whole.apply(log)
    assert whole.now() == tree(root), "something changed files behind the recorder's back"
    return distinct(cuts(before, log))


def cuts_after_kills(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, num_kills: int | None
) -> list[Cut]:
    """The first process dies after any effect; the second does the work again; then the power goes.

    `num_kills`: a sample of so many places to die at; None: all.
    """
    root = beginning(scenario, tmp_path)
    before = tree(root)
    first = record(root, scenario.work, monkeypatch)
    places = range(len(first) + 1)
    if num_kills is not None:
        places = random.Random(scenario.name).sample(places, min(num_kills, len(places)))
    found = []
    for killed in places:
        disk = Disk(before)
        disk.apply(first[:killed])
        left = write_tree(disk.now(), tmp_path / f"killed-{killed}")
        second = record(left, scenario.work, monkeypatch)
        found += distinct(cuts(before, first[:killed] + second, earlier=killed))
    return distinct(iter(found))


def report(scenario: Scenario, kind: str, found: list[Cut]) -> dict[str, object]:
    """A row of the table."""
    return {"scenario": f"{scenario.name}: {kind}", "cuts": len(found)}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_a_power_cut(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_all(scenario, sampled(scenario, single_cuts(scenario, tmp_path, monkeypatch)), tmp_path)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_a_kill_and_then_a_power_cut(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cuts_after_kills(scenario, tmp_path, monkeypatch, num_kills=NUM_SAMPLED_KILLS)
    check_all(scenario, sampled(scenario, found), tmp_path)


@pytest.mark.crash
@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_every_power_cut(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    found = single_cuts(scenario, tmp_path, monkeypatch)
    check_all(scenario, found, tmp_path)
    record_property("power cuts", report(scenario, "power cut", found))


@pytest.mark.crash
@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_every_kill_and_then_every_power_cut(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    found = cuts_after_kills(scenario, tmp_path, monkeypatch, num_kills=None)
    check_all(scenario, found, tmp_path)
    record_property("power cuts", report(scenario, "kill, then power cut", found))
