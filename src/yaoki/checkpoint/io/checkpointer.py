"""Decides when to save; saves and prunes on a thread of its own.

Between two updates the state does not change: the frozen window. At each step boundary the checkpointer
receives a snapshot, which refers to the live tensors and is valid until `release`. It is written if a save is
due, or if the run is stopped within the window. An error of the writing thread is raised at the next call on
the training thread.
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

_CANCEL_TIMEOUT_S = 5.0
"""How long to wait for a cancelled write; a disk that hangs never returns."""


@dataclass(slots=True)
class _Save:
    """A save in progress."""

    frozen: FrozenTensors
    committed: Future[Committed]
    checked: Future[None]
    skip_check: Event
    """Set if reading it back must not delay a newer save."""
    is_announced: bool = False
    """Whether `on_saved` was called."""


class Checkpointer:
    """Saves and prunes checkpoints; measures how long training waited for it.

    A context manager: on exit, saves in progress are cancelled; `finish` waits for them first. Do not skip
    the
    exit: a process that ends while one of its threads is inside torch may abort.

    Every method except `take_stall_s` may raise the YaokiError of a save that failed since the last call. The
    state in memory and earlier checkpoints are not affected by it.
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
        """
        Args:
            accuracies: held-out accuracy by step, for `keep_best`; called on the writing thread.
            sync_metrics: makes the rows of metrics.jsonl durable; called on the writing thread.
            saved_step: step of the checkpoint that this attempt resumed from, or -1.
            on_saved: called on the training thread when a checkpoint is durable.
            on_pruned: called on the training thread when a checkpoint was read back and older ones were
                pruned.
        """
        self._store = store
        self._info = info
        self._config = config
        self._accuracies = accuracies
        self._sync_metrics = sync_metrics
        self._saved_step = saved_step
        self._on_saved = on_saved
        self._on_pruned = on_pruned
        self._boundary: tuple[Snapshot, int] | None = None
        self._saves: deque[_Save] = deque()
        self._is_cancelled = Event()
        self._stall_s = 0.0
        self._worker = SerialThread("checkpoint")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_cancelled.set()
        self._worker.close(_CANCEL_TIMEOUT_S)

    def save_if_due(self, snapshot: Snapshot, step: int, *, is_last: bool) -> None:
        """Keep the snapshot of a step boundary; start to save it if a save is due."""
        with self._stalling():
            self._drain(wait=False)
            self._boundary = (snapshot, step)
            every = self._config.every_steps
            if is_last or (every > 0 and step > 0 and step % every == 0):
                self._begin()

    def save_held(self) -> None:
        """Wait until the current step boundary, if there is one, and all saves in progress are durable.

        For a stop, after which the process may be killed soon; `finish` also reads back and prunes.
        """
        with self._stalling():
            self._drain(wait=False)
            earlier = tuple(self._saves)
            if self._begin():
                for save in earlier:
                    save.skip_check.set()
            for save in tuple(self._saves):
                self._announce(save)

    def release(self) -> None:
        """End the frozen window: the tensors may change when this returns.

        Waits until the writing thread has read them; with `on_overrun = "copy"`, only until at most
        `copy_memory_gb` of them are unread, which are then copied.
        """
        with self._stalling():
            self._boundary = None
            may_copy = self._config.on_overrun == "copy"
            copy_bytes = int(self._config.copy_memory_gb * 1e9) if may_copy else 0
            for save in tuple(self._saves):
                if not save.frozen.release(copy_bytes):
                    self._await(save, save.committed)  # raises the error that ended the reading
            self._drain(wait=False)

    def finish(self) -> None:
        """Wait until everything is written, read back and pruned; remove leftovers of dead attempts."""
        self._drain(wait=True)
        if self._store.is_first:
            self._store.remove_leftovers()
        self._prune()
        self._on_pruned()

    def take_stall_s(self) -> float:
        """Seconds that training waited for saves since the last call."""
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
        """Start to save the current step boundary, unless it was saved before; says whether it did."""
        if self._boundary is None or self._boundary[1] == self._saved_step:
            return False
        snapshot, self._saved_step = self._boundary
        frozen, skip_check = FrozenTensors(), Event()
        committed = self._worker.submit(partial(self._write, snapshot, frozen, self._saved_step))
        checked = self._worker.submit(partial(self._check, committed, skip_check))
        self._saves.append(_Save(frozen, committed, checked, skip_check))
        return True

    def _drain(self, *, wait: bool) -> None:
        """Remove finished saves from the queue, oldest first, or wait for all of them."""
        while self._saves and (wait or self._saves[0].checked.done()):
            save = self._saves[0]
            self._await(save, save.checked)
            self._announce(save)
            self._saves.popleft()
            self._on_pruned()

    def _announce(self, save: _Save) -> None:
        """Wait until a save is durable, and call `on_saved` once."""
        self._await(save, save.committed)
        if not save.is_announced:
            save.is_announced = True
            self._on_saved(save.committed.result().saved)

    def _await(self, save: _Save, outcome: Future[Any]) -> None:
        """Wait for a stage of a save and raise its error, once; its boundary can then be saved again."""
        error = outcome.exception()
        if error is not None:
            self._saves.remove(save)
            self._saved_step = -1
            raise error

    def _write(self, snapshot: Snapshot, frozen: FrozenTensors, step: int) -> Committed:
        """On the writing thread: save until it is durable."""
        poll = partial(_cancel_if, self._is_cancelled)
        try:
            poll()
            self._sync_metrics()  # first, because the checkpoint refers to these rows
            return self._store.commit(snapshot, frozen, step=step, info=self._info, poll=poll)
        finally:
            frozen.close()

    def _check(self, committed: Future[Committed], skip: Event) -> None:
        """On the writing thread: read it back, and only then prune older ones."""
        try:
            self._store.read_back(committed.result(), partial(_cancel_if, self._is_cancelled, skip))
        except Cancelled:
            return
        self._prune()

    def _prune(self) -> None:
        if not self._store.is_first:
            return
        config = self._config
        policy = Policy(config.keep_last, config.keep_every or None, config.keep_best)
        self._store.prune(policy, metrics=self._accuracies() if config.keep_best else {})


def _cancel_if(*events: Event) -> None:
    if any(event.is_set() for event in events):
        raise Cancelled
