"""When a checkpoint is born. Between two updates the state stands still: the frozen window.

At each step boundary the checkpointer is handed a snapshot, which refers to the live tensors and is true
until `release`. It has it written on a thread of its own when it is due, or when the run is stopped inside
the window. What goes wrong there is raised on the thread that trains, at its next call. Knows nothing
of what the parts are.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter
from types import TracebackType
from typing import Any

from yaoki.checkpoint.io.frozen import FrozenTensors
from yaoki.checkpoint.io.save import SaveInfo
from yaoki.checkpoint.io.snapshot import Snapshot
from yaoki.checkpoint.io.store import CheckpointStore, Committed, SavedCheckpoint
from yaoki.checkpoint.retention import Policy
from yaoki.config.schema import CheckpointConfig
from yaoki.ranks.agree import Cancelled
from yaoki.thread import SerialThread

_LEAVE_S = 5.0
"""How long a write that nobody wants any more may take to notice it; a disk that hangs never does."""


@dataclass(slots=True)
class _Save:
    """A checkpoint on its way."""

    source: FrozenTensors
    committed: Future[Committed]
    checked: Future[None]
    skip_check: Event
    """Set when something else is more urgent than to read it back."""
    is_told: bool = False


class Checkpointer:
    """Decides, saves and prunes; counts the seconds that training waited for it.

    A context manager: on leaving it, what is still being written is given up, unless `finish` has waited.
    Do leave it: a process that ends while one of its threads is inside torch may be aborted.

    Every method but `take_stall_s` may raise the YaokiError of a save that went wrong since the last call.
    Training's state is untouched by that, and earlier checkpoints stay.
    """

    def __init__(
        self,
        store: CheckpointStore,
        info: SaveInfo,
        config: CheckpointConfig,
        accuracies: Callable[[], dict[int, float]],
        sync_metrics: Callable[[], None],
        saved_step: int,
        on_saved: Callable[[SavedCheckpoint], None],
        on_pruned: Callable[[], None],
    ) -> None:
        """`saved_step` is the step of the checkpoint that this attempt started from, or -1.

        `accuracies` and `sync_metrics` are called on the writing thread; `on_saved` on the caller's, when a
        checkpoint is durable; `on_pruned` there too, when it was read back and older ones are gone.
        """
        self._store = store
        self._info = info
        self._config = config
        self._accuracies = accuracies
        self._sync_metrics = sync_metrics
        self._saved_step = saved_step
        self._on_saved = on_saved
        self._on_pruned = on_pruned
        self._held: tuple[Snapshot, int] | None = None
        self._saves: deque[_Save] = deque()
        self._is_leaving = Event()
        self._stall_s = 0.0
        self._worker = SerialThread("checkpoint")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_leaving.set()
        self._worker.close(_LEAVE_S)

    def save_if_due(self, snapshot: Snapshot, step: int, *, is_last: bool) -> None:
        """Take over the snapshot of a step boundary; begin to write it if its turn has come."""
        with self._stalling():
            self._settle(wait=False)
            self._held = (snapshot, step)
            every = self._config.every_steps
            if is_last or (every > 0 and step > 0 and step % every == 0):
                self._begin()

    def save_held(self) -> None:
        """Make sure that the boundary at hand is durable, if there is one, and what was begun before it.

        For a stop: whoever stopped the run may not wait long. `finish` also reads it back and prunes.
        """
        with self._stalling():
            self._settle(wait=False)
            earlier = tuple(self._saves)
            if self._begin():
                for save in earlier:
                    save.skip_check.set()
            for save in tuple(self._saves):
                self._tell(save)

    def release(self) -> None:
        """The frozen window ends: the tensors are about to change, so the snapshot is let go.

        Waits until the writer has read them, or copies what it has not read yet if that is asked for.
        """
        with self._stalling():
            self._held = None
            may_copy = self._config.on_overrun == "copy"
            copy_bytes = int(self._config.copy_memory_gb * 1e9) if may_copy else 0
            for save in tuple(self._saves):
                if not save.source.release(copy_bytes):
                    self._await(save, save.committed)  # which is an error
            self._settle(wait=False)

    def finish(self) -> None:
        """Wait for all that is being written, read back and pruned. Nothing of dead attempts stays either."""
        self._settle(wait=True)
        if self._store.is_first:
            self._store.remove_leftovers()
        self._prune()
        self._on_pruned()

    def take_stall_s(self) -> float:
        """Seconds that training has waited for saves since this was last asked."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self._stall_s += perf_counter() - start

    def _begin(self) -> bool:
        """Have the boundary at hand written, if there is one that was not; says whether there is."""
        if self._held is None or self._held[1] == self._saved_step:
            return False
        snapshot, self._saved_step = self._held
        source, skip_check = FrozenTensors(), Event()
        committed = self._worker.submit(partial(self._write, snapshot, source, self._saved_step))
        checked = self._worker.submit(partial(self._check, committed, skip_check))
        self._saves.append(_Save(source, committed, checked, skip_check))
        return True

    def _settle(self, *, wait: bool) -> None:
        """Let go of saves that are over, oldest first."""
        while self._saves and (wait or self._saves[0].checked.done()):
            save = self._saves[0]
            self._await(save, save.checked)
            self._tell(save)
            self._saves.popleft()
            self._on_pruned()

    def _tell(self, save: _Save) -> None:
        """Wait until a save is durable, and say so once."""
        self._await(save, save.committed)
        if not save.is_told:
            save.is_told = True
            self._on_saved(save.committed.result().saved)

    def _await(self, save: _Save, outcome: Future[Any]) -> None:
        """Raise, once, what went wrong with a save; after that its boundary may be saved again."""
        error = outcome.exception()
        if error is not None:
            self._saves.remove(save)
            self._saved_step = -1
            raise error

    def _write(self, snapshot: Snapshot, source: FrozenTensors, step: int) -> Committed:
        """On the writing thread: everything up to the point where it survives a power cut."""
        poll = partial(_give_up_if, self._is_leaving)
        try:
            poll()
            self._sync_metrics()  # the checkpoint refers to rows, so they come first
            return self._store.commit(snapshot, source, step=step, info=self._info, poll=poll)
        finally:
            source.close()

    def _check(self, committed: Future[Committed], skip: Event) -> None:
        """On the writing thread: read it back, and only then let older ones go."""
        try:
            self._store.read_back(committed.result(), partial(_give_up_if, self._is_leaving, skip))
        except Cancelled:
            return
        self._prune()

    def _prune(self) -> None:
        if not self._store.is_first:
            return
        config = self._config
        policy = Policy(config.keep_last, config.keep_every or None, config.keep_best)
        self._store.prune(policy, metrics=self._accuracies() if config.keep_best else {})


def _give_up_if(*events: Event) -> None:
    if any(event.is_set() for event in events):
        raise Cancelled
