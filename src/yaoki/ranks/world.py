"""The ranks of a run: the only place that makes process groups.

Collectives of training use the default group. Messages beside them go through channels with groups of their
own: one for the loop, one for the thread that writes checkpoints. A shared group would mix the messages of
two threads.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, HashStore, Store
from torch.distributed.distributed_c10d import _get_default_store

from yaoki.errors import PeerLostError, UsageError
from yaoki.ranks.environment import STORE_FILE

_STOP = "yaoki/stop"


class Channel:
    """Messages between all ranks, which make the same calls in the same order, from one thread each.

    Raises PeerLostError when another rank is lost.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    def gather(self, message: bytes) -> list[bytes]:
        """All-gather of bytes, in the order of the ranks."""
        if self.size == 1:
            return [message]
        with peers_expected():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(message)]), group=self._group)
            longest = max(int(length) for length in lengths)
            padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
            if message:
                padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            buffers = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(buffers, padded, group=self._group)
        return [
            buffer.numpy().tobytes()[: int(length)] for buffer, length in zip(buffers, lengths, strict=True)
        ]

    def any_reason(self, mine: str | None) -> str | None:
        """The reason that the first rank with one gives; None if none has one."""
        reasons = [message.decode() for message in self.gather((mine or "").encode())]
        return next(filter(None, reasons), None)

    def wait(self) -> None:
        """Barrier."""
        self.gather(b"")


@dataclass(frozen=True)
class World:
    """This process among the ranks of its run; one rank alone has no process groups."""

    rank: int
    size: int
    local_rank: int
    """Index among the ranks on this machine."""
    loop: Channel
    """For the thread that trains."""
    writer: Channel
    """For the thread that writes checkpoints."""
    store: Store | None = None
    timeout_s: float = 0.0
    """Timeout of collectives."""
    turns: Iterator[int] = field(default_factory=partial(count, 1))
    """Counts the calls of `rank0_first`, on every rank alike."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes everything that is written once."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce, in place; returns the tensor."""
        if self.size > 1:
            with peers_expected():
                dist.all_reduce(tensor)
        return tensor

    def ask_to_stop(self, reason: str) -> None:
        """Publish a reason to stop; every rank polls it."""
        if self.store is not None:
            self.store.set(_STOP, reason)

    def asked_to_stop(self) -> str | None:
        """The reason that some rank has published, if any."""
        if self.store is None or not self.store.check([_STOP]):
            return None
        return str(self.store.get(_STOP).decode())


def alone() -> World:
    """A world of one rank."""
    return World(0, 1, 0, Channel(0, 1), Channel(0, 1))


@contextmanager
def joined(
    environment: Mapping[str, str], device_type: str, timeout_s: float, *, always_group: bool = False
) -> Iterator[World]:
    """The world that the launcher's environment variables describe; its groups exist within the context.

    Args:
        environment: RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them; without them there is one rank.
        timeout_s: timeout for an unresponsive peer.
        always_group: initialise the default group for one rank alone, too; see `shard`.

    Raises:
        UsageError: the variables contradict one another.
        PeerLostError: a rank did not join.
    """
    size = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", 0)
    if size == 1 and not always_group:
        yield alone()
        return
    if not 0 <= rank < size:
        raise UsageError(f"RANK is {rank}, WORLD_SIZE is {size}", hint="start all ranks with one launcher")
    local_rank = _number(environment, "LOCAL_RANK", 0)
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    timeout = timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    with peers_expected():
        store = _own_store(environment, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        loop, writer = (
            Channel(rank, size, dist.new_group(backend="gloo", timeout=timeout)) for _ in range(2)
        )
    try:
        yield World(rank, size, local_rank, loop, writer, _get_default_store(), timeout_s)
    finally:
        dist.destroy_process_group()


@contextmanager
def peers_expected() -> Iterator[None]:
    """Turn what torch raises about a lost peer into PeerLostError."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_lost_peer(error):
            raise
        raise PeerLostError(
            f"another worker of this run is lost or does not respond: {_in_short(error)}",
            hint="see that worker's log for the reason, then start the run again: it goes on from what is "
            "on disk",
        ) from error


def _is_of_a_lost_peer(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text.lower() or "Connection closed by peer" in text


def _in_short(error: RuntimeError) -> str:
    """The first line, without the location in gloo's sources and without its advice."""
    line = re.sub(r"^\[\S+\.cc:\d+\] ", "", str(error).splitlines()[0])
    return line.split(". This is typically")[0]


def _own_store(environment: Mapping[str, str], size: int) -> Store | None:
    if size == 1:
        return HashStore()
    path = environment.get(STORE_FILE)
    return None if path is None else FileStore(path, size)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the environment variable {name} is {text!r}, expected a number") from None
