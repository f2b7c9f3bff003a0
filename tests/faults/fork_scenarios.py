"""What people do beside a run: checkpoints pinned, runs forked."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import make_config
from tests.support.snapshots import INFO, content, small_snapshot
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.retention import Policy
from yaoki.commands.fork import fork
from yaoki.journal.metrics import LogPosition, read_rows
from yaoki.runs.directory import RunDirectory

from .checkpoint_scenarios import save
from .children import Acknowledge
from .run_scenarios import append_rows, row
from .scenario import tree

NUM_ROWS = 2


@dataclass(frozen=True)
class Pin:
    """A name is set, another one is forgotten; then checkpoints without a name go."""

    name: str = "pin"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        store = CheckpointStore(root / "checkpoints")
        for step in (1, 2, 3):
            save(store, step)
        Pins(store.directory).set("first", 1)

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        pins = Pins(root / "checkpoints")
        pins.set("good", 2)
        acknowledge("set")
        if "first" in pins.by_name():
            pins.remove("first")
        acknowledge("removed")
        CheckpointStore(root / "checkpoints").prune(Policy(keep_last=1))

    def check(self, root: Path, acknowledged: list[str]) -> str:
        pins = Pins(root / "checkpoints").by_name()
        num_changes = [{"first": 1}, {"first": 1, "good": 2}, {"good": 2}].index(pins)
        assert num_changes >= len(acknowledged)
        kept = {candidate.step for candidate in CheckpointStore(root / "checkpoints").candidates()}
        assert {2, 3, *pins.values()} <= kept
        return f"{num_changes} changes"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        self.work(root, acknowledge)
        store = CheckpointStore(root / "checkpoints")
        save(store, 4)  # what training does next, and cleans up with
        store.prune(Policy(keep_last=1))

    def end(self, root: Path) -> object:
        return tree(root)


@dataclass(frozen=True)
class Fork:
    """A new run from a checkpoint of another, which must not change by a bit."""

    name: str = "fork"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        parent = RunDirectory(root / "parent")
        parent.create(make_config())
        (parent.model / "below").mkdir(parents=True)
        (parent.model / "config.json").write_text("{}")
        (parent.model / "below" / "vocabulary").write_bytes(b"x" * 5000)
        position = append_rows(parent.path, range(1, NUM_ROWS + 1))
        CheckpointStore(parent.checkpoints).save(_snapshot(position), step=NUM_ROWS, info=INFO)
        append_rows(parent.path, [NUM_ROWS + 1])
        shutil.copytree(parent.path, root / "as-it-was")

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        if not RunDirectory(root / "new").exists:
            fork(RunDirectory(root / "parent"), NUM_ROWS, RunDirectory(root / "new"), ["train.steps=9"])
            acknowledge("forked")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        assert tree(root / "parent") == tree(root / "as-it-was")
        if not (root / "new").exists():
            assert not acknowledged
            return "no fork"
        new = RunDirectory(root / "new")
        assert new.stored_config().train.steps == 9
        assert new.parent is not None
        assert read_rows(new.metrics_path) == [row(step) for step in range(1, NUM_ROWS + 1)]
        chosen = new.choose_checkpoint().checkpoint
        assert chosen is not None
        given = root / "parent" / "checkpoints" / chosen.path.name
        assert content(load(chosen.path).parts) == content(load(given).parts)
        assert tree(new.model) == tree(root / "parent" / "model")
        return "a fork"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        self.work(root, acknowledge)

    def end(self, root: Path) -> object:
        return list(tree(root)), self.check(root, [])


def _snapshot(position: LogPosition) -> Snapshot:
    """One that says which rows belong to it, as that of a run does."""
    facts = {name: getattr(position, name) for name in position.__slots__}
    metrics = PartState(Scope.GLOBAL, json=facts)
    return Snapshot({**small_snapshot(NUM_ROWS).parts, "metrics": metrics})


BESIDES = (Pin(), Fork())
