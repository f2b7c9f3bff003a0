"""Checkpoints: saved on top of an earlier one, saved again at the same step, pruned."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.snapshots import INFO, content, small_snapshot
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.layout import Kind
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import verify
from yaoki.fs import ALIGNMENT_BYTES

from .children import Acknowledge
from .scenario import tree

AGAIN = 50
"""Added to the seed of a state that is saved when its step has been saved before."""


def save(store: CheckpointStore, step: int, variant: int = 0) -> None:
    """The one place here that knows how a checkpoint is made durable."""
    store.save(small_snapshot(step + variant), step=step, info=INFO)


def newest(directory: Path) -> tuple[int, int] | None:
    """Step and variant of what the next start resumes from; everything with a proper name must be whole."""
    for candidate in Catalog(directory).candidates():
        if candidate.kind is not Kind.UNFINISHED:
            verify(candidate.path)
    chosen = Catalog(directory).choose().checkpoint
    if chosen is None:
        return None
    step = chosen.manifest.step
    found = content(load(chosen.path).parts)
    for variant in (0, AGAIN):
        if found == content(small_snapshot(step + variant).parts):
            return step, variant
    raise AssertionError(f"{chosen.path} holds what nobody saved")


def go_on_until(root: Path, last_step: int, policy: Policy) -> None:
    """Resume from the newest checkpoint; save and prune at each step until the last."""
    store = CheckpointStore(root / "checkpoints")
    chosen = store.choose().checkpoint
    for step in range(chosen.manifest.step if chosen else 0, last_step):
        save(store, step + 1)
        store.prune(policy)


@dataclass(frozen=True)
class Save:
    """A second checkpoint beside a first one."""

    name: str = "save"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        save(CheckpointStore(root / "checkpoints"), 1)

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        save(CheckpointStore(root / "checkpoints"), 2)
        acknowledge("step 2")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        found = newest(root / "checkpoints")
        assert found == (2, 0) or (found == (1, 0) and not acknowledged)
        return "new" if found == (2, 0) else "old"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        go_on_until(root, 3, Policy(keep_last=3))

    def end(self, root: Path) -> object:
        return tree(root)


@dataclass(frozen=True)
class FirstSave:
    """A checkpoint where there is none, not even the directory."""

    name: str = "first save"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        pass

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        save(CheckpointStore(root / "run" / "checkpoints"), 1)
        acknowledge("step 1")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        found = newest(root / "run" / "checkpoints")
        assert found == (1, 0) or (found is None and not acknowledged)
        return "new" if found else "none"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        go_on_until(root / "run", 2, Policy(keep_last=3))

    def end(self, root: Path) -> object:
        return tree(root)


@dataclass(frozen=True)
class SaveUnchanged:
    """A part that rarely changes is the same as in the checkpoint before: a link instead of a copy."""

    name: str = "save with an unchanged part"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        CheckpointStore(root / "checkpoints").save(with_reference(1), step=1, info=INFO)

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        self._save(root, 2)
        acknowledge("step 2")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        chosen = Catalog(root / "checkpoints").choose().checkpoint
        assert chosen is not None
        step = chosen.manifest.step
        assert content(load(chosen.path).parts) == content(with_reference(step).parts)
        assert step >= 2 if acknowledged else step >= 1
        return "new" if step == 2 else "old"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        self._save(root, 3)
        CheckpointStore(root / "checkpoints").prune(Policy(keep_last=1))

    def end(self, root: Path) -> object:
        return tree(root)

    def _save(self, root: Path, step: int) -> None:
        chosen = Catalog(root / "checkpoints").choose().checkpoint
        store = CheckpointStore(root / "checkpoints", chosen)
        store.save(with_reference(step), step=step, info=INFO)


def with_reference(step: int) -> Snapshot:
    """The sample's state, a part that never changes, and one of whole blocks, for direct writes."""
    reference = {"weight": torch.arange(3000, dtype=torch.float32)}
    block = {"weight": torch.full((ALIGNMENT_BYTES,), float(step))}
    return Snapshot(
        {
            **small_snapshot(step).parts,
            "reference.params": PartState(Scope.SHARDED, reference, rarely_changes=True),
            "critic.params": PartState(Scope.SHARDED, block),
        }
    )


@dataclass(frozen=True)
class SaveAgain:
    """A step that is there already is saved with another content; then the old one is pruned."""

    name: str = "save the same step again"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        store = CheckpointStore(root / "checkpoints")
        save(store, 1)
        save(store, 2)

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        store = CheckpointStore(root / "checkpoints")
        save(store, 2, AGAIN)
        acknowledge("step 2 again")
        store.prune(Policy(keep_last=1))
        acknowledge("pruned")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        found = newest(root / "checkpoints")
        assert found == (2, AGAIN) or (found == (2, 0) and not acknowledged)
        return "new" if found == (2, AGAIN) else "old"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        go_on_until(root, 3, Policy(keep_last=1))

    def end(self, root: Path) -> object:
        return tree(root)


@dataclass(frozen=True)
class Prune:
    """Two of four checkpoints go."""

    name: str = "prune"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        store = CheckpointStore(root / "checkpoints")
        for step in (1, 2, 3, 4):
            save(store, step)

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        CheckpointStore(root / "checkpoints").prune(Policy(keep_last=2))
        acknowledge("pruned")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        assert newest(root / "checkpoints") == (4, 0)
        steps = {candidate.step for candidate in Catalog(root / "checkpoints").candidates()}
        assert {3, 4} <= steps  # one that was pruned may come back with a power cut, whole
        return "new" if steps == {3, 4} else "old"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        go_on_until(root, 5, Policy(keep_last=2))

    def end(self, root: Path) -> object:
        return tree(root)


CHECKPOINTS = (FirstSave(), Save(), SaveUnchanged(), SaveAgain(), Prune())
