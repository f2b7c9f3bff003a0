"""Pins, and what pruning does with them and with checkpoints that it has not read."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.snapshots import INFO, small_snapshot
from yaoki import fs
from yaoki.checkpoint import catalog as catalog_module
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.layout import directory_name
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.retention import Policy, Standing
from yaoki.checkpoint.verify import verify
from yaoki.errors import CorruptCheckpointError, NothingThereError, UsageError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = CheckpointStore(tmp_path_factory.mktemp("saved") / "checkpoints")
    for step in range(1, 7):
        store.save(small_snapshot(step), step=step, info=INFO)
    return store.directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """Checkpoints of steps 1 to 6."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def steps_in(directory: Path) -> list[int]:
    return sorted(candidate.step for candidate in Catalog(directory).candidates())


def test_pins_are_kept_by_name(directory: Path) -> None:
    pins = Pins(directory)
    assert pins.by_name() == {}
    pins.set("paper", 2)
    pins.set("Best_so-far.1", 2)
    pins.set("other", 5)
    assert Pins(directory).by_name() == {"Best_so-far.1": 2, "other": 5, "paper": 2}
    assert Pins(directory).by_step() == {2: ("Best_so-far.1", "paper"), 5: ("other",)}
    pins.set("other", 3)
    assert pins.remove("paper") == 2
    assert Pins(directory).by_name() == {"Best_so-far.1": 2, "other": 3}
    with pytest.raises(NothingThereError, match="nothing is pinned as 'paper'") as caught:
        pins.remove("paper")
    assert caught.value.hint == "pinned are: Best_so-far.1, other"


@pytest.mark.parametrize("name", ["", "a b", "../up", ".hidden", "-x", "x" * 101, "a/b", "ä"])
def test_a_name_is_plain(name: str, directory: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a pin"):
        Pins(directory).set(name, 1)
    assert Pins(directory).by_name() == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "1"}', '{"a": true}', '{"a": 1.0}', "null"])
def test_nothing_is_removed_while_the_pins_cannot_be_read(text: str, directory: Path) -> None:
    (directory / "pins.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"pins\.json: "):
        Catalog(directory).prune(Policy(keep_last=1))
    assert steps_in(directory) == [1, 2, 3, 4, 5, 6]


def test_a_pin_that_is_set_after_the_start_is_respected(directory: Path) -> None:
    store = CheckpointStore(directory)
    assert [path.name for path in store.prune(Policy(keep_last=4))] == [directory_name(1), directory_name(2)]
    Pins(directory).set("mine", 3)
    assert [path.name for path in store.prune(Policy(keep_last=2))] == [directory_name(4)]
    Pins(directory).remove("mine")
    assert [path.name for path in store.prune(Policy(keep_last=2))] == [directory_name(3)]


def test_a_pin_that_is_set_during_a_prune_is_respected(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = fs.remove_tree

    def remove_and_pin(path: Path) -> None:
        remove(path)
        Pins(directory).set("late", 3)

    monkeypatch.setattr(fs, "remove_tree", remove_and_pin)
    Catalog(directory).prune(Policy(keep_last=1))
    assert steps_in(directory) == [3, 6]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps whose checkpoints are read in full, as it happens."""
    steps: list[int] = []

    def recording(path: Path) -> object:
        steps.append(int(path.name[-8:]))
        return verify(path)

    monkeypatch.setattr(catalog_module, "verify", recording)
    return steps


def damage(directory: Path, *steps: int) -> None:
    for step in steps:
        (directory / directory_name(step) / "state.json").write_bytes(b"{}")


def test_only_as_many_as_are_needed_are_read(directory: Path, read: list[int]) -> None:
    catalog = Catalog(directory)
    standings = [d.entry.standing for _, d in catalog.decide(Policy(keep_last=2))]
    assert standings == [Standing.VERIFIED] * 2 + [Standing.UNREAD] * 4
    assert read == [6, 5]
    catalog.prune(Policy(keep_last=2, keep_every=3))
    assert read == [6, 5], "nothing is read twice"
    assert steps_in(directory) == [3, 5, 6]


def test_a_corrupt_one_is_replaced_by_an_older_one_that_is_read(directory: Path, read: list[int]) -> None:
    damage(directory, 6, 4)
    catalog = Catalog(directory)
    assert [path.name for path in catalog.prune(Policy(keep_last=2))] == [
        directory_name(step) for step in (1, 2)
    ]
    assert read == [6, 5, 4, 3]
    assert steps_in(directory) == [3, 4, 5, 6], "4 and 6 stay to be looked at"


def test_nothing_goes_if_there_are_too_few_that_are_whole(directory: Path, read: list[int]) -> None:
    damage(directory, 1, 2, 3, 4, 6)
    assert Catalog(directory).prune(Policy(keep_last=2)) == []
    assert read == [6, 5, 4, 3, 2, 1]


def test_of_a_step_whose_new_checkpoint_is_gone_the_replaced_one_stands_for_it(directory: Path) -> None:
    """As after a crash between the two renames of a commit."""
    (directory / directory_name(4)).rename(directory / (directory_name(4) + ".replaced-1"))
    kept = Catalog(directory).prune(Policy(keep_last=1, keep_every=4))
    assert [path.name for path in kept] == [directory_name(step) for step in (1, 2, 3, 5)]
    assert steps_in(directory) == [4, 6]


def test_of_a_step_that_was_saved_again_only_the_new_one_is_kept(directory: Path) -> None:
    again = directory / directory_name(4)
    shutil.copytree(again, again.with_name(again.name + ".replaced-1"))
    gone = Catalog(directory).prune(Policy(keep_last=1, keep_every=4))
    assert [path.name for path in gone] == [
        *(directory_name(step) for step in (1, 2, 3)),
        f"{again.name}.replaced-1",
        directory_name(5),
    ]


def test_age_is_read_where_the_policy_asks_for_it(directory: Path) -> None:
    created = {step: verify(directory / directory_name(step)).created_unix_s for step in range(1, 7)}
    (directory / directory_name(2) / "manifest.json").write_text("{}")
    Catalog(directory).prune(Policy(keep_last=1, keep_since_unix_s=created[4]))
    assert steps_in(directory) == [2, 4, 5, 6], "of unknown age, or young"
    assert json.loads((directory / directory_name(2) / "manifest.json").read_text()) == {}
