"""What checkpoints are measured with: a state, a job that generates, the limits of the machine, memory."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import torch
import xxhash

from yaoki.checkpoint.direct_io import BLOCK_BYTES, new_blocks

State = dict[str, dict[str, torch.Tensor]]
"""Part -> name -> tensor."""

NUM_LAYERS = 12
BATCH_SIZE = 32


def make_state(size_gb: float) -> State:
    """Policy with tied embeddings, critic, and AdamW's state of both: the shapes of a small Qwen."""
    hidden = 64
    while _num_bytes(_shapes(hidden + 64)) < size_gb * 1e9:
        hidden += 64
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for name, head in (("policy", None), ("critic", "score.weight")):
        shapes = _shapes(hidden + 64) | ({} if head is None else {head: (1, hidden + 64)})
        weights = {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.items()}
        moments = {
            f"{moment}/{key}": torch.randn(weight.shape, generator=generator)
            for key, weight in weights.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }
        steps = {f"step/{key}": torch.tensor(100.0) for key in weights}
        state[f"{name}.params"] = weights
        state[f"{name}.optim"] = moments | steps
    policy = state["policy.params"]
    policy["lm_head.weight"] = policy["model.embed_tokens.weight"]
    return state


def num_bytes(state: State) -> int:
    """Tied tensors once."""
    return sum({t.data_ptr(): t.nbytes for part in state.values() for t in part.values()}.values())


def num_tensors(state: State) -> int:
    return sum(len(part) for part in state.values())


def _shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    inner, kv = 11 * hidden // 4, hidden // 4
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (24 * hidden, hidden)}
    for layer in range(NUM_LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "self_attn.q_proj.weight": (hidden, hidden),
                "self_attn.q_proj.bias": (hidden,),
                "self_attn.k_proj.weight": (kv, hidden),
                "self_attn.k_proj.bias": (kv,),
                "self_attn.v_proj.weight": (kv, hidden),
                "self_attn.v_proj.bias": (kv,),
                "self_attn.o_proj.weight": (hidden, hidden),
                "mlp.gate_proj.weight": (inner, hidden),
                "mlp.up_proj.weight": (inner, hidden),
                "mlp.down_proj.weight": (hidden, inner),
                "input_layernorm.weight": (hidden,),
                "post_attention_layernorm.weight": (hidden,),
            }.items()
        }
    return shapes | {"model.norm.weight": (hidden,)}


def _num_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """Of two networks with two moments each, in four bytes an element."""
    return 2 * 3 * 4 * sum(torch.Size(shape).numel() for shape in shapes.values())


class Generation:
    """Decodes with the policy's own weights, one layer after another, and counts the layers."""

    def __init__(self, state: State) -> None:
        weights = state["policy.params"]
        self._layers = [
            [weights[f"model.layers.{layer}.{name}.weight"] for name in names]
            for layer in range(NUM_LAYERS)
            for names in (("self_attn.q_proj", "self_attn.o_proj"), ("mlp.gate_proj", "mlp.down_proj"))
        ]
        self._hidden = torch.randn(BATCH_SIZE, weights["model.norm.weight"].shape[0])

    def run_while(self, goes_on: Callable[[], bool]) -> tuple[int, float]:
        """(layers, seconds); at least one layer."""
        start, num_layers = time.perf_counter(), 0
        with torch.no_grad():
            hidden = self._hidden
            while True:
                for weight in self._layers[num_layers % len(self._layers)]:
                    hidden = torch.tanh(hidden @ weight.T)
                int(hidden[0].argmax())  # a sampled token is looked at
                num_layers += 1
                if not goes_on():
                    return num_layers, time.perf_counter() - start

    def run_for(self, seconds: float) -> float:
        """Layers a second."""
        end = time.perf_counter() + seconds
        num_layers, seconds = self.run_while(lambda: time.perf_counter() < end)
        return num_layers / seconds


class PeakMemory:
    """The most memory that this process and its children took in the context, above what they had before."""

    def __enter__(self) -> "PeakMemory":
        self._before = self._peak = _memory_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def extra_bytes(self) -> int:
        return max(0, self._peak - self._before)

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._peak = max(self._peak, _memory_bytes())


def _memory_bytes() -> int:
    """Private memory of all processes, and shared memory of the one that maps most of it."""
    private, shared = 0, 0
    for pid in ["self", *_children()]:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
        private += kilobytes.get("RssAnon", 0) << 10
        shared = max(shared, kilobytes.get("RssShmem", 0) << 10)
    return private + shared


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # that thread has ended
            yield from (task / "children").read_text().split()


class Memory:
    """What this machine's memory and one core can do at best, in seconds for so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._source = torch.ones(256 << 20, dtype=torch.uint8)
        self._target = torch.ones(256 << 20, dtype=torch.uint8)

    def copy(self) -> float:
        """One thread, into memory that has been touched."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        start = time.perf_counter()
        for _ in range(4):
            self._target.copy_(self._source)
        seconds = time.perf_counter() - start
        torch.set_num_threads(threads)
        return seconds * self._num_bytes / (4 * self._source.nbytes)

    def digest(self) -> float:
        """xxh3-128, one thread."""
        data, digest = memoryview(self._source.numpy()), xxhash.xxh3_128()
        start = time.perf_counter()
        for begin in range(0, len(data), BLOCK_BYTES):
            digest.update(data[begin : begin + BLOCK_BYTES])
        return (time.perf_counter() - start) * self._num_bytes / len(data)


class Disk:
    """What the disk can do at best, in seconds for so many bytes."""

    def __init__(self, num_bytes: int, directory: Path) -> None:
        self._num_bytes = num_bytes
        self._directory = directory
        self._block = new_blocks()[0]  # in huge pages: raw access is a third as fast without them
        self._block[:] = os.urandom(BLOCK_BYTES)
        self._write_to(directory / "to read")

    def write(self) -> float:
        """Aligned blocks past the page cache into a new file, and an fsync."""
        path = self._directory / "written"
        os.sync()
        seconds = self._write_to(path)
        path.unlink()
        os.sync()
        return seconds

    def read(self) -> float:
        """Aligned blocks, from the disk."""
        os.sync()
        file = os.open(self._directory / "to read", os.O_RDONLY | os.O_DIRECT)
        start = time.perf_counter()
        for _ in range(self._num_blocks):
            assert os.readv(file, [self._block]) == BLOCK_BYTES
        seconds = time.perf_counter() - start
        os.close(file)
        return self._scaled(seconds)

    def _write_to(self, path: Path) -> float:
        start = time.perf_counter()
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
        for _ in range(self._num_blocks):
            assert os.write(file, self._block) == BLOCK_BYTES
        os.fsync(file)
        os.close(file)
        return self._scaled(time.perf_counter() - start)

    @property
    def _num_blocks(self) -> int:
        return -(-self._num_bytes // BLOCK_BYTES)

    def _scaled(self, seconds: float) -> float:
        return seconds * self._num_bytes / (self._num_blocks * BLOCK_BYTES)


class RawTraffic:
    """Another process that writes as many bytes raw and reads them; it copies nothing, shares no interpreter.

    What generation loses to it is what the disk's traffic alone costs on this machine.
    """

    def __init__(self, num_bytes: int, directory: Path) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=_write_and_read, args=(theirs, num_bytes, directory), daemon=True
        )
        process.start()
        self._pipe.recv()

    def start(self) -> None:
        self._pipe.send("go")

    @property
    def is_over(self) -> bool:
        return self._pipe.poll()

    def finish(self) -> None:
        self._pipe.recv()


def _write_and_read(pipe: Connection, num_bytes: int, directory: Path) -> None:
    directory.mkdir()
    disk = Disk(num_bytes, directory)
    pipe.send("ready")
    with contextlib.suppress(EOFError):  # the benchmark is over
        while pipe.recv():
            disk.write()
            disk.read()
            pipe.send("done")
