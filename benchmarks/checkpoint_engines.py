"""The engines of the checkpoint benchmark, behind one interface; fsyncs that one lacks are added to it."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from checkpoint_machine import State
from yaoki.checkpoint.io.checkpointer import Checkpointer
from yaoki.checkpoint.io.reader import read_into
from yaoki.checkpoint.io.save import SaveInfo
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore, Committed
from yaoki.checkpoint.layout import directory_name
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.verify import read_manifest
from yaoki.config.schema import CheckpointConfig


class Running:
    """A save that training does not wait for any more."""

    def __init__(self, work: Callable[[], float], before_update: Callable[[], None] | None = None) -> None:
        """`work` waits for the end of it and says, on perf_counter's clock, when it was durable."""
        self._outcome: Future[float] = Future()
        self._before_update = before_update
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)

    @property
    def is_over(self) -> bool:
        if self._thread.ident is None:
            self._thread.start()  # not before: to start a thread takes time, and is no part of a save
        return self._outcome.done()

    def release(self) -> float:
        """The next update is due; returns the instant at which the checkpoint was durable."""
        if self._before_update is not None:
            self._before_update()
        return self._outcome.result()

    def _run(self, work: Callable[[], float]) -> None:
        try:
            self._outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised in `release`
            self._outcome.set_exception(error)


class Engine(Protocol):
    """Saves and loads."""

    name: str
    added: str
    """The fsyncs that it does not do itself."""

    def save(self, state: State, directory: Path) -> Running:
        """Returns when training may go on; the state stays as it is until `release`."""

    def load(self, state: State, directory: Path) -> None:
        """Into the live tensors."""


def sync_tree(directory: Path) -> None:
    """Every file, every directory, and the name of `directory`."""
    for path in (directory.parent, directory, *sorted(directory.rglob("*"))):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def flat(state: State) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}


def restore(state: State, loaded: dict[str, torch.Tensor]) -> None:
    for name, tensor in loaded.items():
        part, key = name.split("/", 1)
        state[part][key].copy_(tensor)


class TorchSave(Engine):
    name, added = "torch.save", "file, directory"

    def save(self, state: State, directory: Path) -> Running:
        torch.save(flat(state), directory / "state.pt")
        sync_tree(directory)
        return Running(time.perf_counter)

    def load(self, state: State, directory: Path) -> None:
        restore(state, torch.load(directory / "state.pt", weights_only=True))


class Safetensors(Engine):
    name, added = "safetensors", "file, directory"

    def save(self, state: State, directory: Path) -> Running:
        tensors = flat(state)
        del tensors["policy.params/lm_head.weight"]  # it refuses tied tensors
        safetensors.torch.save_file(tensors, directory / "state.safetensors")
        sync_tree(directory)
        return Running(time.perf_counter)

    def load(self, state: State, directory: Path) -> None:
        restore(state, safetensors.torch.load_file(directory / "state.safetensors"))


class Dcp(Engine):
    name, added = "DCP save", "metadata, directory"

    def save(self, state: State, directory: Path) -> Running:
        dcp.save(dict(state), checkpoint_id=directory)
        sync_tree(directory)
        return Running(time.perf_counter)

    def load(self, state: State, directory: Path) -> None:
        dcp.load(dict(state), checkpoint_id=directory)


class DcpAsync(Dcp):
    """With a stager that is used again, so that it does not touch new memory each time."""

    def __init__(self, kind: AsyncCheckpointerType) -> None:
        is_process = kind is AsyncCheckpointerType.PROCESS
        self.name = "DCP async, process" if is_process else "DCP async, thread"
        self._kind = kind
        # Neither pinned memory nor staging in the background: both need CUDA. Shared memory spares the
        # process engine a second copy.
        self._stager = DefaultStager(StagingOptions(False, True, False, False))

    def save(self, state: State, directory: Path) -> Running:
        uploaded: Any = dcp.async_save(
            dict(state),
            checkpoint_id=directory,
            async_checkpointer_type=self._kind,
            async_stager=self._stager,
        )

        def wait() -> float:
            uploaded.result()
            sync_tree(directory)
            return time.perf_counter()

        return Running(wait)


class Yaoki(Engine):
    """As in training: snapshot, checkpointer, its thread, the read-back, the pruning of the one before."""

    name, added = "Yaoki", "none"

    def __init__(self, directory: Path) -> None:
        self._store = _TimedStore(directory / "checkpoints")
        self._checkpointer = Checkpointer(
            store=self._store,
            info=SaveInfo("benchmark", 1, None, "0" * 32, "0" * 32, {}),
            config=CheckpointConfig(every_steps=1, keep_last=1),
            accuracies=dict,
            sync_metrics=lambda: None,
            saved_step=-1,
            on_saved=lambda _: None,
            on_pruned=lambda: None,
        )
        self._step = 0

    def save(self, state: State, _: Path) -> Running:
        self._step += 1
        snapshot = Snapshot({name: PartState(Scope.SHARDED, tensors) for name, tensors in state.items()})
        self._checkpointer.save_if_due(snapshot, self._step, is_last=False)
        return Running(self._wait, self._checkpointer.release)

    def _wait(self) -> float:
        self._checkpointer.finish()
        return self._store.durable_at_s

    def load(self, state: State, directory: Path) -> None:
        path = directory / "checkpoints" / directory_name(self._step)
        read_into(path, read_manifest(path), state)


class _TimedStore(CheckpointStore):
    durable_at_s = 0.0

    def commit(self, *arguments: Any, **named: Any) -> Committed:
        committed = super().commit(*arguments, **named)
        self.durable_at_s = time.perf_counter()
        return committed


def engines(directory: Path) -> list[Engine]:
    """All of them; each is to be given the folder of its name in `directory`."""
    return [
        Yaoki(directory / Yaoki.name),
        TorchSave(),
        Safetensors(),
        Dcp(),
        DcpAsync(AsyncCheckpointerType.THREAD),
        DcpAsync(AsyncCheckpointerType.PROCESS),
    ]


def start_process_group(directory: Path) -> None:
    """DCP's process engine wants one, be it of one rank."""
    dist.init_process_group("gloo", store=dist.FileStore(str(directory / "store"), 1), rank=0, world_size=1)
