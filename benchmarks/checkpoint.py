"""Checkpoint engines side by side: what a save costs training, when it is durable, how fast it comes back.

State: policy and critic with AdamW's moments, on the CPU. In each round every engine saves once while a
decoding loop, the generation of an RL step, goes on in the main thread; then it loads, the page cache cold.
Rounds are interleaved in random order, so that a busy machine disturbs all alike. A disk that others use too
may be twice as fast in one second as in the next; so right before and right after each save and each load as
many bytes are written or read raw, and ratios are to the mean of the two. Figures are medians.

- stall: how long training stands still; for Yaoki the snapshot, `save_if_due` and `release`.
- durable: from the call until it survives a power cut. Fsyncs that an engine lacks are added.
- generation: its speed while anything is still done for the save, as a share of its speed alone just before.
  For Yaoki that includes reading all of it back from the disk.
- lost: stall + (1 - generation) x how long that lasted. Beside it, as a limit: what generation loses while
  another process writes as many bytes raw and reads them back, and does nothing else.
- memory: the most that was taken above what there was, in all rounds including a first one for warming up.
- flip: whether one flipped bit in the middle of the largest file is noticed when it is loaded.
"""

import argparse
import gc
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from checkpoint_engines import Engine, engines, start_process_group
from checkpoint_machine import (
    Disk,
    Generation,
    Memory,
    PeakMemory,
    RawTraffic,
    State,
    make_state,
    num_bytes,
    num_tensors,
)

FIGURES = ("stall_s", "durable_s", "generation", "lost_s", "load_s", "durable_to_write", "load_to_read")
ALONE_S = 0.7


@dataclass
class Results:
    """Of all rounds, by engine or limit."""

    engines: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)
    extra_bytes: dict[str, int] = field(default_factory=dict)
    notices_flip: dict[str, bool] = field(default_factory=dict)


class Contest:
    """A state, the engines, and a folder in which they work."""

    def __init__(self, directory: Path, size_gb: float) -> None:
        self.state = make_state(size_gb)
        self.engines = engines(directory)
        self._generation = Generation(self.state)
        self._memory = Memory(num_bytes(self.state))
        self._disk = Disk(num_bytes(self.state), directory)
        self._traffic = RawTraffic(num_bytes(self.state), directory / "traffic")
        self._directory = directory
        self.results = Results()

    def warm_up(self) -> None:
        """What an engine takes once, such as a process. Not timed; memory and the flipped bit are tried here.

        Memory is sampled, which costs time, so saves that are timed are not watched.
        """
        for engine in self.engines:
            with PeakMemory() as memory:
                self._save(engine)
                self._clean(engine)
                self._save(engine)
            self.results.extra_bytes[engine.name] = memory.extra_bytes
            path = max(self._files(engine), key=lambda path: path.stat().st_size)
            flip_bit(path)
            try:
                engine.load(self.state, self._folder(engine))
                self.results.notices_flip[engine.name] = False
            except Exception:  # noqa: BLE001 - each has errors of its own
                self.results.notices_flip[engine.name] = True
            flip_bit(path)
            self._clean(engine)

    def round(self, randomness: random.Random) -> None:
        """Every engine and the limits, once each."""
        self._note_limit("memcpy", self._memory.copy)
        self._note_limit("digest", self._memory.digest)
        self._note_limit("lost to raw traffic", self._lost_to_traffic)
        for engine in randomness.sample(self.engines, len(self.engines)):
            before = self._note_limit("write", self._disk.write)
            figures = self._save(engine)
            write_s = (before + self._note_limit("write", self._disk.write)) / 2
            before = self._note_limit("read", self._disk.read)
            load_s = self._load(engine)
            read_s = (before + self._note_limit("read", self._disk.read)) / 2
            self._clean(engine)
            figures |= {
                "load_s": load_s,
                "durable_to_write": figures["durable_s"] / write_s,
                "load_to_read": load_s / read_s,
            }
            of_engine = self.results.engines.setdefault(engine.name, {})
            for name, figure in figures.items():
                of_engine.setdefault(name, []).append(figure)

    def _note_limit(self, name: str, measure: Callable[[], float]) -> float:
        seconds = measure()
        self.results.limits.setdefault(name, []).append(seconds)
        return seconds

    def _save(self, engine: Engine) -> dict[str, float]:
        folder = self._folder(engine)
        folder.mkdir(exist_ok=True)
        alone = self._generation.run_for(ALONE_S)
        start = time.perf_counter()
        running = engine.save(self.state, folder)
        stall_s = time.perf_counter() - start
        num_layers, busy_s = self._generation.run_while(lambda: not running.is_over)
        before_release = time.perf_counter()
        durable_at_s = running.release()
        stall_s += time.perf_counter() - before_release
        alone = (alone + self._generation.run_for(ALONE_S)) / 2  # the machine is not as fast all the time
        share = num_layers / busy_s / alone
        return {
            "stall_s": stall_s,
            "durable_s": durable_at_s - start,
            "generation": share,
            "lost_s": stall_s + busy_s * (1 - share),
        }

    def _lost_to_traffic(self) -> float:
        alone = self._generation.run_for(ALONE_S)
        self._traffic.start()
        num_layers, busy_s = self._generation.run_while(lambda: not self._traffic.is_over)
        self._traffic.finish()
        alone = (alone + self._generation.run_for(ALONE_S)) / 2
        return busy_s * (1 - num_layers / busy_s / alone)

    def _load(self, engine: Engine) -> float:
        for path in self._files(engine):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.sync()  # what the save has left behind, such as blocks to discard, is no part of loading
        start = time.perf_counter()
        engine.load(self.state, self._folder(engine))
        return time.perf_counter() - start

    def _clean(self, engine: Engine) -> None:
        """Yaoki removes its own, for that is part of a save."""
        if engine.name != "Yaoki":
            shutil.rmtree(self._folder(engine))
        os.sync()

    def _folder(self, engine: Engine) -> Path:
        return self._directory / engine.name

    def _files(self, engine: Engine) -> list[Path]:
        return [path for path in self._folder(engine).rglob("*") if path.is_file()]


def flip_bit(path: Path) -> None:
    """In the middle of the file, and on the disk."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def ratios(of: list[float], to: list[float]) -> float:
    return median(a / b for a, b in zip(of, to, strict=True))


def summary(results: Results, state: State) -> dict[str, object]:
    """Everything that is shown, as JSON has it."""
    limits, size_bytes = results.limits, num_bytes(state)
    by_engine = {}
    for engine, figures in results.engines.items():
        by_engine[engine] = {
            **{name: median(figures[name]) for name in FIGURES},
            "extra_memory": results.extra_bytes[engine] / size_bytes,
            "notices_flipped_bit": results.notices_flip[engine],
        }
    ours, best = results.engines["Yaoki"], {}
    for name in ("stall_s", "lost_s"):
        theirs = [figures for engine, figures in results.engines.items() if "async" in engine]
        best[name] = min((figures[name] for figures in theirs), key=median)
    return {
        "state_gb": size_bytes / 1e9,
        "num_tensors": num_tensors(state),
        "num_threads": torch.get_num_threads(),
        "num_rounds": len(limits["memcpy"]),
        "limits_s": {name: median(seconds) for name, seconds in limits.items()},
        "engines": by_engine,
        "targets": {
            "stall below 5 ms": (median(ours["stall_s"]), 0.005),
            "stall to the best DCP async's": (ratios(ours["stall_s"], best["stall_s"]), 0.01),
            "durable to the raw write": (by_engine["Yaoki"]["durable_to_write"], 1.25),
            "verified restore to the raw read": (by_engine["Yaoki"]["load_to_read"], 1.25),
            "extra memory, share of the state": (by_engine["Yaoki"]["extra_memory"], 0.02),
            "training time lost to the best DCP async's": (ratios(ours["lost_s"], best["lost_s"]), 0.1),
        },
        "rounds": results.engines,
        "rounds_limits": limits,
    }


def show(found: dict, added: dict[str, str]) -> None:
    """Three tables on stdout."""
    console = Console(width=130)
    console.print(
        f"{found['num_tensors']} tensors, {found['state_gb']:.2f} GB, {found['num_rounds']} rounds, "
        f"{found['num_threads']} torch threads"
    )
    table = Table("limit", "s", "GB/s")
    for name, seconds in found["limits_s"].items():
        speed = "" if name.startswith("lost") else f"{found['state_gb'] / seconds:.2f}"
        table.add_row(name, f"{seconds:.3f}", speed)
    console.print(table)
    columns = (
        "engine",
        "stall s",
        "durable s",
        "to write",
        "generation",
        "lost s",
        "memory",
        "load s",
        "to read",
    )
    table = Table(*columns, "flip", "fsync added")
    for name, engine in found["engines"].items():
        table.add_row(
            name,
            f"{engine['stall_s']:.4f}",
            f"{engine['durable_s']:.2f}",
            f"{engine['durable_to_write']:.2f}",
            f"{engine['generation']:.2f}",
            f"{engine['lost_s']:.3f}",
            f"{engine['extra_memory']:.1%}",
            f"{engine['load_s']:.2f}",
            f"{engine['load_to_read']:.2f}",
            "noticed" if engine["notices_flipped_bit"] else "loaded",
            added[name],
        )
    console.print(table)
    table = Table("target", "found", "at most", "")
    for name, (value, limit) in found["targets"].items():
        table.add_row(name, f"{value:.4g}", f"{limit:g}", "reached" if value <= limit else "missed")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Checkpoint engines, side by side.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size-gb", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    parser.add_argument("--seed", type=int, default=0, help="of the order within rounds")
    parser.add_argument("--dir", type=Path, help="where to write; a temporary directory here if not given")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(
        prefix="checkpoint-benchmark-", dir=arguments.dir or Path.cwd(), ignore_cleanup_errors=True
    ) as name:
        start_process_group(Path(name))
        contest = Contest(Path(name), arguments.size_gb)
        contest.warm_up()
        gc.collect()
        gc.freeze()  # as `yaoki train` does once all is built; it helps every engine
        randomness = random.Random(arguments.seed)
        for number in range(arguments.rounds):
            contest.round(randomness)
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    found = summary(contest.results, contest.state)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    show(found, {engine.name: engine.added for engine in contest.engines})


if __name__ == "__main__":
    main()
