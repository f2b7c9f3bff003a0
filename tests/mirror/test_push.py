"""The copy is a run that can be gone on with, at every instant, whatever dies or fails."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaoki import fs
from yaoki.checkpoint.layout import MANIFEST, directory_name
from yaoki.errors import RefusedError, YaokiError
from yaoki.mirror.layout import manifest_name

from .samples import (
    FaultyFileSystem,
    Killed,
    add_segment,
    bulk_of,
    cut_back,
    do_step,
    faulty_store,
    new_copier,
    nothing_happens,
    prune,
    save,
    start_run,
    stored,
    whole_checkpoints,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return start_run(tmp_path / "run")


def watch(effects: list[str]) -> None:
    """Look at the store after every effect: what was acknowledged is still there, nothing is half there."""
    acknowledged = [bool(whole_checkpoints())]

    def look(verb: str, name: str) -> None:
        effects.append(f"{verb} {name}")
        steps = whole_checkpoints()
        assert steps or not acknowledged[0], "the last checkpoint is gone"
        acknowledged[0] = acknowledged[0] or bool(steps)

    FaultyFileSystem.after = staticmethod(look)


def train(path: Path, first: int, last: int, every: int = 2) -> None:
    for step in range(first, last + 1):
        do_step(path, step)
        if step % every == 0:
            save(path, step)


def without_second_metrics(files: dict[str, bytes]) -> dict[str, bytes]:
    return {n: d for n, d in files.items() if not (n.startswith("checkpoints/") and n.endswith("s.jsonl"))}


def test_the_copy_holds_what_the_run_holds(run: Path) -> None:
    train(run, 1, 5)
    new_copier(run).copy()
    assert without_second_metrics(stored()) == bulk_of(run)
    assert whole_checkpoints() == [2, 4]


def test_what_is_referred_to_comes_first(run: Path) -> None:
    train(run, 1, 4)
    effects: list[str] = []
    watch(effects)
    new_copier(run).copy()
    order = [effect.removeprefix("put ") for effect in effects]
    places = {name: order.index(name) for name in order}
    manifests = [manifest_name(2), manifest_name(4)]
    segments = [name for name in order if name.startswith("rollouts/")]
    assert max(places[n] for n in ("run.json", "config.json", "model/tokenizer.json")) < places[manifests[0]]
    assert max(places[n] for n in segments) < places["metrics.jsonl"] < places[manifests[0]]
    assert places[manifests[0]] < places[manifests[1]] < places["saved.json"]


def test_a_second_pass_sends_only_what_is_new(run: Path) -> None:
    train(run, 1, 2)
    copier = new_copier(run)
    copier.copy()
    effects: list[str] = []
    watch(effects)
    copier.copy()
    assert effects == []
    do_step(run, 3)
    copier.copy()
    assert [effect.split("/")[0] for effect in effects] == ["put rollouts", "put metrics.jsonl"]
    effects.clear()
    new_copier(run).copy()
    assert not [effect for effect in effects if "checkpoints" in effect or "rollouts" in effect]


def test_what_was_pruned_here_is_removed_there(run: Path) -> None:
    train(run, 1, 4)
    copier = new_copier(run)
    copier.copy()
    prune(run, 2)
    effects: list[str] = []
    watch(effects)
    copier.copy()
    removed = [effect.removeprefix("remove ") for effect in effects if effect.startswith("remove")]
    assert removed[0] == manifest_name(2)
    assert whole_checkpoints() == [4]
    assert without_second_metrics(stored()) == bulk_of(run)


def test_a_removal_that_an_attempt_has_left_undone_is_done_by_the_next(run: Path) -> None:
    train(run, 1, 4)
    new_copier(run).copy()
    prune(run, 2)
    new_copier(run).copy()
    assert without_second_metrics(stored()) == bulk_of(run)


def test_nothing_is_removed_that_this_directory_never_had(run: Path) -> None:
    """As after a fetch, which brings the newest checkpoint only."""
    train(run, 1, 4)
    new_copier(run).copy()
    prune(run, 2)
    (run / "storage.json").unlink()
    before = stored()
    new_copier(run).copy()
    assert stored() == before


def test_the_last_whole_checkpoint_stays_until_another_is_there(run: Path) -> None:
    train(run, 1, 2)
    copier = new_copier(run)
    copier.copy()
    fs.remove_tree(run / "checkpoints" / directory_name(2))
    copier.copy()
    assert whole_checkpoints() == [2]
    train(run, 3, 4)
    copier.copy()
    assert whole_checkpoints() == [4]


def damage(path: Path, step: int) -> None:
    (path / "checkpoints" / directory_name(step) / "policy.safetensors").write_bytes(b"short")


def test_a_damaged_checkpoint_is_not_copied(run: Path) -> None:
    train(run, 1, 4)
    damage(run, 4)
    new_copier(run).copy()
    assert whole_checkpoints() == [2]


def test_what_says_that_there_are_checkpoints_waits_for_one(run: Path) -> None:
    train(run, 1, 2)
    damage(run, 2)
    copier = new_copier(run)
    copier.copy()
    assert "saved.json" not in stored()
    train(run, 3, 4)
    copier.copy()
    assert "saved.json" in stored()


def test_the_journal_stays_as_long_as_a_checkpoint_there_may_need_it(run: Path) -> None:
    train(run, 1, 3)
    copier = new_copier(run)
    copier.copy()
    train(run, 4, 4)
    damage(run, 4)
    prune(run, 2)
    copier.copy()
    assert whole_checkpoints() == [2]
    assert {name[9:22] for name in stored() if name.startswith("rollouts/")} == {"step-00000003"}
    train(run, 5, 6)
    prune(run, 4)
    copier.copy()
    assert without_second_metrics(stored()) == bulk_of(run)


def test_the_only_checkpoint_is_not_given_up_for_another_of_its_step(run: Path) -> None:
    train(run, 1, 2)
    copier = new_copier(run)
    copier.copy()
    before = stored()
    save(run, 2, "again")
    watch([])
    copier.copy()
    assert stored() == before
    train(run, 3, 4)
    copier.copy()
    copier.copy()
    assert without_second_metrics(stored()) == bulk_of(run)


def test_a_step_that_was_saved_again_is_copied_again(run: Path) -> None:
    train(run, 1, 4)
    copier = new_copier(run)
    copier.copy()
    cut_back(run, 2)
    do_step(run, 3, "again")
    watch([])
    copier.copy()
    do_step(run, 4, "again")
    save(run, 4, "again")
    copier.copy()
    assert whole_checkpoints() == [2, 4]
    assert stored()[manifest_name(4)] == (run / "checkpoints" / directory_name(4) / MANIFEST).read_bytes()


def test_a_step_that_is_saved_again_while_it_is_copied(run: Path) -> None:
    train(run, 1, 4)
    copier = new_copier(run)

    def save_again(verb: str, name: str) -> None:
        if name.endswith("00004/policy.safetensors"):
            nothing_happens()
            save(run, 4, "again")

    FaultyFileSystem.after = staticmethod(save_again)
    copier.copy()
    assert whole_checkpoints() == [2]
    copier.copy()
    assert whole_checkpoints() == [2, 4]


def test_a_segment_that_was_quarantined_is_removed(run: Path) -> None:
    train(run, 1, 2)
    segment = add_segment(run, 3, "bad")
    add_segment(run, 3, "good", 2)
    copier = new_copier(run)
    copier.copy()
    segment.unlink()
    copier.copy()
    assert without_second_metrics(stored()) == bulk_of(run)


def test_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    new_copier(run).copy()
    with pytest.raises(RefusedError, match=r"holds the run run-7, .* the run run-8"):
        new_copier(start_run(tmp_path / "other", "run-8"))


def test_a_run_that_has_gone_on_elsewhere_is_refused(run: Path) -> None:
    train(run, 1, 4)
    new_copier(run).copy()
    fs.remove_tree(run / "checkpoints" / directory_name(4))
    (run / "storage.json").unlink()
    with pytest.raises(RefusedError, match=r"holds step 4 of this run, .* holds step 2"):
        new_copier(run)


def scene(path: Path) -> Callable[[], None]:
    """A copy of an earlier state, and what it takes to bring it up to date: every kind of effect."""
    train(path, 1, 4)
    new_copier(path).copy()
    prune(path, 2)
    train(path, 5, 6)
    save(path, 4, "again")
    return lambda: new_copier(path).copy()


def num_effects(path: Path) -> int:
    effects: list[str] = []
    update = scene(start_run(path / "counted"))
    watch(effects)
    update()
    nothing_happens()
    assert {effect.split()[0] for effect in effects} == {"put", "remove"}
    return len(effects)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_effect(tmp_path: Path, when: str) -> None:
    for index in range(num_effects(tmp_path)):
        with faulty_store():
            path = start_run(tmp_path / f"run-{index}")
            update = scene(path)
            watch([])
            look, count = FaultyFileSystem.after, iter(range(10**6))

            def strike(verb: str, name: str, index: int = index, count=count) -> None:
                if next(count) == index:
                    raise Killed

            def look_and_strike(verb: str, name: str, look=look, strike=strike) -> None:
                look(verb, name)
                strike(verb, name)

            if when == "before":
                FaultyFileSystem.before = staticmethod(strike)
            else:
                FaultyFileSystem.after = staticmethod(look_and_strike)
            with pytest.raises(Killed):
                update()
            assert whole_checkpoints()
            nothing_happens()
            watch([])
            new_copier(path).copy()
            assert without_second_metrics(stored()) == bulk_of(path)
            assert whole_checkpoints() == [4, 6]


def test_every_effect_fails(tmp_path: Path) -> None:
    """The pass fails, and the next one continues."""
    for index in range(num_effects(tmp_path)):
        with faulty_store():
            path = start_run(tmp_path / f"run-{index}")
            scene(path)
            copier, count = new_copier(path), iter(range(10**6))
            watch([])

            def fail(verb: str, name: str, index: int = index, count=count) -> None:
                if next(count) == index:
                    raise ConnectionError("reset by peer")

            FaultyFileSystem.before = staticmethod(fail)
            with pytest.raises(YaokiError, match="ConnectionError: reset by peer"):
                copier.copy()
            copier.copy()
            assert without_second_metrics(stored()) == bulk_of(path)
            assert whole_checkpoints() == [4, 6]


ACTIONS = st.sampled_from(["step", "save", "prune", "prune", "quarantine", "again", "attempt", "die"])

PLANS = st.lists(st.tuples(st.integers(0, 12), ACTIONS), max_size=4)
"""What happens after which effect of a pass."""


class Life:
    """A run that goes on between and during the effects of its copying."""

    def __init__(self, path: Path) -> None:
        self.path = start_run(path)
        self.step = 0
        self.num_saves = 0
        self.dies = False

    def act(self, action: str) -> None:
        kept = sorted(int(p.name[5:13]) for p in self.path.glob("checkpoints/step-????????"))
        match action:
            case "step":
                self.step += 1
                do_step(self.path, self.step)
            case "save" if self.step and self.step not in kept:
                self.save(self.step)
            case "prune" if len(kept) > 1:
                prune(self.path, kept[0])
            case "again" if kept:
                self.save(kept[-1])
            case "quarantine":
                for segment in sorted(self.path.glob(f"rollouts/step-{self.step:08d}/*"))[:1]:
                    segment.unlink()
            case "die":
                self.dies = True

    def save(self, step: int) -> None:
        self.num_saves += 1
        save(self.path, step, str(self.num_saves))


@settings(max_examples=60)
@given(
    before=st.lists(ACTIONS, max_size=8),
    during=st.lists(st.tuples(st.lists(ACTIONS, max_size=3), PLANS), min_size=1, max_size=5),
)
def test_any_interleaving(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[str],
    during: list[tuple[list[str], list[tuple[int, str]]]],
) -> None:
    with faulty_store():
        life = Life(tmp_path_factory.mktemp("life") / "run")
        for action in ["step", "step", *before]:
            life.act(action)
        life.dies = False
        copier = new_copier(life.path)
        for between, plan in during:
            for action in between:
                life.act(action)
            copier = passes_while(life, copier, plan)
        nothing_happens()
        life.act("step")
        life.act("save")
        copier.copy()
        copier.copy()
        assert set(whole_checkpoints()) >= {int(p.name[5:]) for p in life.path.glob("checkpoints/step-*")}
        here, there = bulk_of(life.path), without_second_metrics(stored())
        assert {n: d for n, d in there.items() if n in here} == here


def passes_while(life: Life, copier, plan: list[tuple[int, str]]):
    """One pass, with things happening at its effects; a new copier if it died."""
    watch([])
    look, count = FaultyFileSystem.after, iter(range(10**6))

    def go_on(verb: str, name: str) -> None:
        look(verb, name)
        now = next(count)
        for place, action in plan:
            if place == now:
                life.act(action)
        if life.dies:
            raise Killed

    FaultyFileSystem.after = staticmethod(go_on)
    try:
        copier.copy()
    except Killed:
        life.dies = False
        nothing_happens()
        return new_copier(life.path)
    return copier
