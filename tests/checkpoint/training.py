"""A training loop without a model, for tests of the checkpointer."""

import threading
from pathlib import Path

import torch

from tests.support.snapshots import INFO, content
from yaoki.checkpoint.io.checkpointer import Checkpointer
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore, SavedCheckpoint
from yaoki.checkpoint.manifest import Scope
from yaoki.config.schema import CheckpointConfig

NUM_ELEMENTS = 10_000
"""Of a weight; many blocks of the size that these tests use."""


class Training:
    """A state that every update overwrites from end to end, and a checkpointer that gets each boundary."""

    def __init__(self, directory: Path, **config: object) -> None:
        self.step = 0
        embedding = torch.zeros(NUM_ELEMENTS)
        self.weights = {
            "embedding": embedding,
            "head": embedding,
            "transposed": torch.zeros(60, 80).T,
            "half": torch.zeros(NUM_ELEMENTS, dtype=torch.bfloat16),
            "scalar": torch.zeros(()),
            "empty": torch.zeros(0),
        }
        self.moments: dict[str, torch.Tensor] = {}
        self.told: list[tuple[int, str]] = []
        self.events: list[str] = []
        self.store = CheckpointStore(directory)
        self.checkpointer = Checkpointer(
            store=self.store,
            info=INFO,
            config=CheckpointConfig(**{"every_steps": 1, "keep_last": 5, **config}),
            accuracies=dict,
            sync_metrics=lambda: self.events.append("rows are durable"),
            saved_step=-1,
            on_saved=self._on_saved,
            on_pruned=lambda: None,
        )

    def _on_saved(self, saved: SavedCheckpoint) -> None:
        self.told.append((saved.step, threading.current_thread().name))

    def update(self) -> None:
        """Every tensor is another one afterwards; the optimizer has a state after the first time."""
        self.step += 1
        self.moments = self.moments or {name: torch.zeros_like(w) for name, w in self.weights.items()}
        for tensor in (*self.weights.values(), *self.moments.values()):
            tensor.fill_(self.step)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            {
                "policy.params": PartState(Scope.SHARDED, self.weights),
                "policy.optim": PartState(Scope.SHARDED, self.moments),
                "progress": PartState(Scope.GLOBAL, json={"step": self.step}),
            }
        )

    def boundary(self, *, is_last: bool = False) -> None:
        self.checkpointer.save_if_due(self.snapshot(), self.step, is_last=is_last)

    def next_step(self) -> None:
        self.checkpointer.release()
        self.update()
        self.boundary()


def state_at(step: int) -> dict[str, object]:
    """What a checkpoint of that step must hold."""
    training = Training(Path("nowhere"))
    for _ in range(step):
        training.update()
    return content(training.snapshot().parts)
