"""Training on a GPU: does a killed run resume bit for bit, how fast are its steps, what do checkpoints cost?

A model of Qwen2-0.5B's shape, with random weights and the built-in tokenizer, is trained by PPO on problems
of Open-Reasoner-Zero's form with `yaoki train`, deterministic, a checkpoint every other step: once unbroken,
once killed by SIGKILL amid a step after the first checkpoint and started again with the same command. The
fingerprints of all steps and the last checkpoints are compared; the exit code is 1 if anything differs.

Before that, in this process, with a state of as many bytes on the device:

- saves: stall, durable and generation as in benchmarks/checkpoint.py; raw writes are right before and after.
- copy: device to pinned host memory by CUDA's clock, in one piece and in a checkpoint's blocks, one by one.

`--size small --device cpu` does all but the copy without a GPU; its figures say nothing about one.
"""

import argparse
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from checkpoint_engines import Yaoki
from checkpoint_machine import Disk, Generation, State, num_bytes
from tests.support.metrics import read_metrics
from yaoki.checkpoint.direct_io import BLOCK_BYTES
from yaoki.checkpoint.io.diff import diff_checkpoints
from yaoki.checkpoint.layout import directory_name
from yaoki.models.builtin import tiny_tokenizer
from yaoki.runs.environment import cpu_name

Rows = list[dict[str, Any]]  # of a table; the same keys in all

EVERY = 2
"""Steps from one checkpoint to the next."""
NUM_SAVES = 3
ALONE_S = 0.7
COPY_BYTES = 1 << 30
SHAPE: tuple[str, ...] = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
SHAPE += ("intermediate_size", "vocab_size")
SIZES = {"0.5b": (24, 896, 14, 2, 4864, 151936), "small": (12, 64, 4, 2, 256, 2048)}
"""The small one has as many layers as the checkpoint benchmark's generation takes."""


def make_model(size: str, folder: Path) -> Qwen2ForCausalLM:
    """The same random weights every time, and a folder of them with the tokenizer."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = dict(zip(SHAPE, SIZES[size], strict=True))
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config.from_dict({**shape, **ends, "tie_word_embeddings": True, "dtype": "float32"})
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_recipe(path: Path, arguments: argparse.Namespace) -> Path:
    """For the model in the folder beside it; returns `path`."""
    on_gpu = arguments.device == "cuda"
    settings = {
        "run.device": arguments.device,
        "run.num_threads": 1,
        "run.deterministic": True,
        "train.steps": arguments.steps,
        "train.num_prompts": 8 if on_gpu else 2,
        "train.group_size": 8 if on_gpu else 2,
        "train.micro_batch_tokens": 4096,
        "train.precision": "bfloat16" if on_gpu else "float32",
        "data.files": [str(arguments.data.resolve())],
        "data.max_prompt_tokens": 900,
        "policy.init_from": str(path.with_name("model").resolve()),
        "engine.batch_size": 32 if on_gpu else 2,
        "engine.max_new_tokens": 256 if on_gpu else 64,
        "checkpoint.every_steps": EVERY,
        "checkpoint.keep_last": 1,
        "journal.flush_seconds": 0,
    }
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()), "utf-8")
    return path


def make_state(model: Qwen2ForCausalLM, device: str) -> State:
    """Policy and critic with both moments of each: as many bytes as in a checkpoint of the runs."""
    state: State = {}
    for name, kind in product(("policy", "critic"), ("params", "exp_avg", "exp_avg_sq")):
        weights = model.named_parameters()
        state[f"{name}.{kind}"] = {key: weight.detach().to(device, copy=True) for key, weight in weights}
    return state


def save(engine: Yaoki, state: State, generation: Generation, directory: Path) -> dict[str, float]:
    """What a step does: a save falls due, completions are generated, the update begins."""
    alone = generation.run_for(ALONE_S)
    start = time.perf_counter()
    running = engine.save(state, directory)
    stall_s = time.perf_counter() - start
    num_layers, busy_s = generation.run_while(lambda: not running.is_over)
    before_release = time.perf_counter()
    durable_s = running.release() - start
    stall_s += time.perf_counter() - before_release
    alone = (alone + generation.run_for(ALONE_S)) / 2
    return {"stall_s": stall_s, "durable_s": durable_s, "generation": num_layers / busy_s / alone}


def measure_saves(state: State, device: str, directory: Path) -> Rows:
    """Some, after one to warm up; the directory is removed."""
    directory.mkdir()
    with torch.device(device):
        generation = Generation(state)
    engine, disk = Yaoki(directory), Disk(num_bytes(state), directory)
    gc.freeze()  # as `yaoki train` does once all is built
    save(engine, state, generation, directory)
    found: Rows = []
    before_s = disk.write()
    for _ in range(NUM_SAVES):
        figures = save(engine, state, generation, directory)
        after_s = disk.write()
        write_s, before_s = (before_s + after_s) / 2, after_s
        found.append({**figures, "raw_write_s": write_s, "to_write": figures["durable_s"] / write_s})
    shutil.rmtree(directory)
    return found


def copy_gb_per_s(piece_bytes: int) -> float:
    """From the device to pinned host memory, in pieces, each waited for."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda").split(piece_bytes)
    target = torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory().split(piece_bytes)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    speeds: list[float] = []
    for _ in range(6):
        begin.record()
        for here, there in zip(source, target, strict=True):
            there.copy_(here, non_blocking=True)
            torch.cuda.current_stream().synchronize()
        end.record()
        end.synchronize()
        speeds.append(COPY_BYTES / 1e6 / begin.elapsed_time(end))
    return median(speeds[1:])


def measure_machine(model: Qwen2ForCausalLM, device: str, directory: Path) -> dict[str, Rows]:
    """What saves cost, and how fast bytes get from the device to the disk at best."""
    state = make_state(model, device)
    gigabytes = num_bytes(state) / 1e9
    saves = measure_saves(state, device, directory)
    speeds: Rows = [
        {"what": f"{what}, {gigabytes:.3f} GB", "GB/s": gigabytes / median(row[key] for row in saves)}
        for what, key in (("save, until durable", "durable_s"), ("raw write", "raw_write_s"))
    ]
    if device == "cuda":
        for what, piece_bytes in (("one piece", COPY_BYTES), ("blocks", BLOCK_BYTES)):
            speeds.append({"what": f"copy to pinned memory, {what}", "GB/s": copy_gb_per_s(piece_bytes)})
    else:
        print("copy from the device: skipped, as that is the CPU")
    return {"saves in this process": saves, "speeds, medians": speeds}


class Runs:
    """Trains one recipe with the command line."""

    def __init__(self, recipe: Path, num_steps: int) -> None:
        self._recipe = recipe
        self._num_steps = num_steps

    def path(self, name: str) -> Path:
        return self._recipe.with_name(name)

    def rows(self, name: str) -> Rows:
        return read_metrics(self.path(name) / "metrics.jsonl")

    def log(self, name: str) -> str:
        return self.path(f"{name}.log").read_text("utf-8", errors="replace")

    def train(self, name: str) -> None:
        """To its end."""
        if (code := self._start(name).wait()) != 0:
            sys.exit(f"{name} ended with exit code {code}:\n{self.log(name)[-2000:]}")

    def kill(self, name: str) -> str:
        """A third of a step after that of the first checkpoint or, if later, once it is there; says when."""
        process = self._start(name)
        self._wait(process, name, lambda: len(self.rows(name)) >= EVERY)
        began, wait_s = time.monotonic(), self.rows(name)[-1]["timing"]["step_s"] / 3
        saved = self.path(name) / "checkpoints" / directory_name(EVERY)
        self._wait(process, name, lambda: time.monotonic() - began > wait_s and saved.exists())
        seconds = time.monotonic() - began
        process.kill()
        num_rows = len(self.rows(name)) if process.wait() == -signal.SIGKILL else self._num_steps
        if num_rows == self._num_steps:
            sys.exit(f"{name} was at its end before it could be killed: try again with more --steps")
        return f"in step {num_rows + 1}, {seconds:.2f} s after step {EVERY}"

    def startup(self, name: str) -> dict[str, float]:
        """Seconds of the last attempt until it could train, by phase."""
        total, phases = re.findall(r"ready after ([\d.]+) s: (.*)", self.log(name))[-1]
        seconds = {phase: float(s) for phase, s in re.findall(r"(\w+) ([\d.]+) s", phases)}
        return {"ready": float(total), **seconds}

    def checkpoints(self, name: str) -> Rows:
        """What a run has said of its saves."""
        said = re.findall(r"saved (step-\d+): ([\d.]+) MB in ([\d.]+) s", self.log(name))
        return [{"checkpoint": step, "MB": float(size), "durable_s": float(s)} for step, size, s in said]

    def compare(self, one: str, other: str) -> Rows:
        """Every component of the fingerprints; one that never changes proves nothing."""
        ours, theirs = ([row["fingerprint"] for row in self.rows(name)] for name in (one, other))
        ends = [self.path(name) / "checkpoints" / directory_name(self._num_steps) for name in (one, other)]
        parts = {
            part.part: asdict(part.tensors) | {"other values": [change.key for change in part.json]}
            for part in diff_checkpoints(*ends)
            if not part.equal
        }
        pairs = list(enumerate(zip(ours, theirs, strict=True), start=1))
        return [
            {
                "component": name,
                "changes": sum(before[name] != after[name] for before, after in pairwise(ours)),
                "steps that differ": [step for step, (a, b) in pairs if a[name] != b[name]],
                "differs at the end": parts.get(name, {}),
            }
            for name in ours[0]
        ]

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "yaoki", "train", str(self._recipe), "--run", str(self.path(name))]
        with self.path(f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _wait(self, process: "subprocess.Popen[bytes]", name: str, until: Callable[[], bool]) -> None:
        while not until():
            if process.poll() is not None:
                sys.exit(f"{name} ended before it could be killed:\n{self.log(name)[-2000:]}")
            time.sleep(0.01)


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Rows]:
    """All tables, by title."""
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name()
    machine = {"device": name, "torch": torch.__version__, "CUDA": torch.version.cuda, "size": arguments.size}
    model = make_model(arguments.size, directory / "model")
    measured = measure_machine(model, arguments.device, directory / "saves")
    torch.cuda.empty_cache()  # the runs need the device's memory
    runs = Runs(write_recipe(directory / "recipe.toml", arguments), arguments.steps)
    print("training unbroken", flush=True)
    runs.train("unbroken")
    killed = runs.kill("killed")
    print(f"killed {killed}", flush=True)
    runs.train("killed")
    reused = sum(row["timing"]["num_reused_rollouts"] for row in runs.rows("killed") if row["attempt"] == 2)
    return {
        "machine": [machine],
        **measured,
        "steps, unbroken": [{"step": row["step"], **row["timing"]} for row in runs.rows("unbroken")],
        "checkpoints, unbroken": runs.checkpoints("unbroken"),
        "killed and resumed, s": [{"killed": killed, "rollouts reused": reused, **runs.startup("killed")}],
        "compared": runs.compare("unbroken", "killed"),
    }


def show(tables: dict[str, Rows]) -> None:
    console = Console(width=170)
    for title, rows in tables.items():
        table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
        for row in rows:
            table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()))
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="problems of Open-Reasoner-Zero's form")
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=4, help="3 or more")
    parser.add_argument("--directory", type=Path, default=Path("runs/gpu"), help="new, and kept")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: try --size small --device cpu")
    arguments.directory.mkdir(parents=True)
    tables = measure(arguments, arguments.directory)
    if arguments.json:
        arguments.json.write_text(json.dumps(tables, indent=1))
    show(tables)
    if any(row["steps that differ"] or row["differs at the end"] for row in tables["compared"]):
        sys.exit("the killed run is another one than the unbroken")


if __name__ == "__main__":
    main()
