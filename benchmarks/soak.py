"""Trains a recipe to its end under SIGKILLs at random instants, and says what they cost.

    python benchmarks/soak.py --minutes 30

The recipe is trained again and again in fresh run directories: in turn unbroken, and killed at exponentially
distributed, seeded instants and started again until it is at its end, with

- the journal, on the disk as it is;
- the journal, on a slow disk (every write held up to a given speed);
- no journal, and checkpoints every few steps: what a trainer without one does.

At the end of each, the digest of the whole state is compared with that of the unbroken run. Printed are the
kills survived, the finished rollouts that were sampled again (with the journal there must be none), and the
effective training time ratio: time of an unbroken run, from start to end, by that of a killed one (medians).
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from tests.support.metrics import read_metrics
from yaoki.checkpoint.layout import STATE
from yaoki.runs.directory import RunDirectory

UNBROKEN = "unbroken"
REPOSITORY = Path(__file__).parents[1]
SLOW_DISK = """
import os, sys, time, types
from yaoki import fs
BYTES_PER_S = float(sys.argv.pop(1))
class SlowDisk(types.ModuleType):
    def __getattr__(self, name):
        return getattr(os, name)
    def write(self, descriptor, data):
        num_bytes = os.write(descriptor, data)
        time.sleep(num_bytes / BYTES_PER_S)
        return num_bytes
fs.os = SlowDisk("os")
from yaoki.cli.main import main
main()
"""


@dataclass(frozen=True)
class Kind:
    """One way of training under fire."""

    name: str
    overrides: tuple[str, ...]
    disk_bytes_per_s: float | None = None

    def command(self, recipe: Path, run: Path, overrides: list[str]) -> list[str]:
        program = ["-m", "yaoki"]
        if self.disk_bytes_per_s is not None:
            program = ["-c", SLOW_DISK, str(self.disk_bytes_per_s)]
        words = ["train", str(recipe), "--run", str(run), *overrides, *self.overrides]
        return [sys.executable, *program, *words]


@dataclass
class Survived:
    """What became of one run under fire."""

    kind: str
    num_kills: int
    seconds: float
    same_digest: bool
    num_finished_sampled_again: int
    """Rollouts that were durable in the journal and were sampled again all the same."""


def train(
    kind: Kind, recipe: Path, run: Path, overrides: list[str], kills: Callable[[], float] | None
) -> int:
    """Until the end; returns the number of kills. `kills` gives the seconds that an attempt has to live."""
    num_kills = 0
    while True:
        with run.with_name(run.name + ".log").open("ab") as log:
            process = subprocess.Popen(
                kind.command(recipe, run, overrides), stdout=log, stderr=log, cwd=REPOSITORY
            )
        try:
            code = process.wait(None if kills is None else kills())
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            num_kills += 1
            continue
        if code != 0:
            sys.exit(f"{kind.name} ended with exit code {code}; see {run}.log")
        return num_kills


def state_of(run: Path) -> dict[str, Any]:
    """Digests of all tensors, the JSON parts that bits are promised of, and the rows' fingerprints."""
    choice = RunDirectory(run).choose_checkpoint()
    assert choice.checkpoint is not None
    state = json.loads((choice.checkpoint.path / STATE).read_text("utf-8"))
    shared = {name: value for name, value in state["shared"].items() if name not in ("lineage", "metrics")}
    digests = {f.name: f.xxh3_128 for f in choice.checkpoint.manifest.files if f.name != STATE}
    fingerprints = [row["fingerprint"] for row in read_metrics(run / "metrics.jsonl")]
    return {**digests, **shared, "rng": state["per_rank"], "fingerprints": fingerprints}


def count_doubles(run: Path) -> int:
    """Rollouts that are in the journal, or in quarantine, a second time."""
    places: set[tuple[int, int, int]] = set()
    num_rows = 0
    for part in sorted([*run.glob("rollouts/*/*.parquet"), *run.glob("quarantine/*/*.parquet")]):
        table = pq.read_table(part, columns=["step", "prompt", "sample"])
        num_rows += table.num_rows
        columns = (table.column(name).to_pylist() for name in ("step", "prompt", "sample"))
        places |= set(zip(*columns, strict=True))
    return num_rows - len(places)


def survive(
    kind: Kind, arguments: argparse.Namespace, work: Path, expected: dict[str, Any], seed: int
) -> Survived:
    generator = random.Random(seed)
    run = work / f"{kind.name.replace(' ', '-')}-{seed}"
    start = time.monotonic()

    def life_s() -> float:
        return arguments.sure_s + generator.expovariate(1 / arguments.mean_life_s)

    lives = None if kind.name == UNBROKEN else life_s
    num_kills = train(kind, arguments.recipe, run, arguments.overrides, lives)
    seconds = time.monotonic() - start
    num_doubles = count_doubles(run)
    state = state_of(run)
    same = state == (expected or state)
    expected.update(state)
    shutil.rmtree(run)
    return Survived(kind.name, num_kills, seconds, same, num_doubles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "recipes" / "tiny.toml")
    parser.add_argument("--minutes", type=float, default=30, help="go on for so long (default 30)")
    parser.add_argument("--mean-life-s", type=float, default=20, help="mean of the random part of a life")
    parser.add_argument("--sure-s", type=float, default=8, help="seconds that an attempt lives at least")
    parser.add_argument("--slow-mb-per-s", type=float, default=5, help="speed of the slow disk")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints without a journal")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.overrides = [f"train.steps={arguments.steps}", "run.show_samples_every=0"]
    kinds = [
        Kind(UNBROKEN, ("journal.keep=all",)),
        Kind("journal", ("journal.keep=all",)),
        Kind("journal, slow disk", ("journal.keep=all",), arguments.slow_mb_per_s * 1e6),
        Kind("no journal", ("journal.enabled=false", f"checkpoint.every_steps={arguments.every}")),
    ]
    with tempfile.TemporaryDirectory(prefix="yaoki-soak-") as directory:
        work = Path(directory)
        begin = time.monotonic()
        expected: dict[str, Any] = {}
        found: list[Survived] = []
        while time.monotonic() - begin < 60 * arguments.minutes or len(found) < len(kinds):
            kind = kinds[len(found) % len(kinds)]
            found.append(survive(kind, arguments, work, expected, arguments.seed + len(found)))
            if not arguments.json:
                print(describe(found[-1]), flush=True)
        report(found, time.monotonic() - begin, arguments)
    if not all(run.same_digest for run in found) or any(run.num_finished_sampled_again for run in found):
        sys.exit(1)


def describe(run: Survived) -> str:
    digest = "same digest" if run.same_digest else "ANOTHER DIGEST"
    return (
        f"{run.kind}: {run.num_kills} kills, {digest}, {run.num_finished_sampled_again} finished rollouts "
        f"sampled again, {run.seconds:.0f} s"
    )


def report(found: list[Survived], seconds: float, arguments: argparse.Namespace) -> None:
    unbroken_s = median(run.seconds for run in found if run.kind == UNBROKEN)
    if arguments.json:
        print(json.dumps({"unbroken_s": unbroken_s, "runs": [asdict(run) for run in found]}, indent=2))
        return
    print(f"\n{seconds / 60:.1f} minutes; an unbroken run took {unbroken_s:.1f} s from start to end")
    print(f"{'kind':<20}{'runs':>6}{'kills':>7}{'same digest':>13}{'sampled again':>15}{'effective':>11}")
    for name in dict.fromkeys(run.kind for run in found):
        runs = [run for run in found if run.kind == name]
        print(
            f"{name:<20}{len(runs):>6}{sum(run.num_kills for run in runs):>7}"
            f"{sum(run.same_digest for run in runs):>13}"
            f"{sum(run.num_finished_sampled_again for run in runs):>15}"
            f"{median(unbroken_s / run.seconds for run in runs):>11.2f}"
        )


if __name__ == "__main__":
    main()
