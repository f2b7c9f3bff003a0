"""When a checkpoint is born. Between two updates the state stands still: the frozen window.

At each step boundary the checkpointer is handed a snapshot, which refers to the live tensors and is true
until `release`. It saves it when it is due, or when the run is stopped inside the window. Knows
nothing of what the parts are.
"""

from collections.abc import Callable
from time import perf_counter

from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.snapshot import Snapshot
from yaoki.checkpoint.store import CheckpointStore, SavedCheckpoint, SaveInfo
from yaoki.config.schema import CheckpointConfig


class Checkpointer:
    """Decides, saves and prunes; counts the seconds that training waited for it."""

    def __init__(
        self,
        store: CheckpointStore,
        info: SaveInfo,
        config: CheckpointConfig,
        accuracies: Callable[[], dict[int, float]],
        sync_metrics: Callable[[], None],
        saved_step: int,
        on_saved: Callable[[SavedCheckpoint], None],
    ) -> None:
        """`saved_step` is the step of the checkpoint that this attempt started from, or -1."""
        self._store = store
        self._info = info
        self._config = config
        self._accuracies = accuracies
        self._sync_metrics = sync_metrics
        self._saved_step = saved_step
        self._on_saved = on_saved
        self._held: tuple[Snapshot, int] | None = None
        self._stall_s = 0.0

    def save_if_due(self, snapshot: Snapshot, step: int, *, is_last: bool) -> None:
        """Take over the snapshot of a step boundary; write it if its turn has come."""
        self._held = (snapshot, step)
        every = self._config.every_steps
        if is_last or (every > 0 and step > 0 and step % every == 0):
            self.save_held()

    def save_held(self) -> None:
        """Make sure that the boundary at hand is saved; nothing to do if it is, or if none is at hand."""
        if self._held is None or self._held[1] == self._saved_step:
            return
        snapshot, step = self._held
        start = perf_counter()
        self._sync_metrics()  # the checkpoint will refer to its rows
        saved = self._store.save(snapshot, step=step, info=self._info)
        self._saved_step = step
        self._stall_s += perf_counter() - start
        policy = Policy(self._config.keep_last, self._config.keep_every or None, self._config.keep_best)
        self._store.prune(policy, metrics=self._accuracies())
        self._on_saved(saved)

    def release(self) -> None:
        """The frozen window ends: the tensors are about to change, so the snapshot is let go."""
        self._held = None

    def take_stall_s(self) -> float:
        """Seconds that training has waited for saves since this was last asked."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s
