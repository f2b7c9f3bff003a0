"""How long a person waits on a run of 10,000 steps, 2,000 checkpoints and 10 million rollouts.

    python benchmarks/big_run.py --directory /tmp/big

makes such a run (once; it takes minutes, and about 2 GB of disk) and measures `yaoki status`, `yaoki
checkpoints list` and what a resume does before it builds its models: lock, choice, metrics, journal.
Tensors are empty, but manifests have the number of entries of a real model's. Parts of the journal that
nobody opens are hard links to one that holds other rollouts. Times are medians, with files in the page
cache; commands are processes of their own, so theirs include the start of Python and all imports. Beside
the wall time of a command stands its processor time, which a busy machine disturbs less.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import xxhash
from safetensors.numpy import save

from tests.support.metrics import step_row
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.layout import MANIFEST, STATE, directory_name, part_file_name
from yaoki.checkpoint.manifest import (
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    PartEntry,
    Scope,
    ShardEntry,
    TensorEntry,
)
from yaoki.checkpoint.retention import Policy
from yaoki.config.compat import config_digest
from yaoki.config.load import load_config
from yaoki.config.schema import Config
from yaoki.journal.journal import RolloutJournal
from yaoki.journal.layout import step_name
from yaoki.journal.metrics import LogPosition, MetricsLog, held_out_accuracies, read_rows
from yaoki.journal.segments import JournalIdentity, encode_segment
from yaoki.journal.step_row import StepRow
from yaoki.runs.directory import RunDirectory
from yaoki.runs.environment import software
from yaoki.runs.records import AttemptStart
from yaoki.strict_json import encode_state
from yaoki.types import Completion, FinishReason, Prompt, Rollout, RolloutKey, Task, Verdict, VerdictReason

NUM_STEPS = 10_000
EVERY = 5
"""Steps from one checkpoint to the next."""
NUM_PROMPTS, GROUP_SIZE = 125, 8
SEGMENT_ROLLOUTS = 64
NUM_ATTEMPTS = 100
TENSORS = {"policy.params": 300, "policy.optim": 900, "critic.params": 300, "critic.optim": 900}
NUM_AFTER = 3
"""Complete steps in the journal after the newest checkpoint; of the next one there is half."""
MAX_LINKS = 30_000
NUMBERS = [name for name, field in StepRow.model_fields.items() if not field.is_required()]
"""Those of a critic and of the updates."""
PROMPTS = [
    Prompt(Task(f"{i:032x}", f"{i}+{i}=", str(2 * i), "arithmetic"), f"{i}+{i}=", (5, 6, 7))
    for i in range(NUM_PROMPTS)
]
CONFIG = [
    "data.family=arithmetic",
    f"train.steps={2 * NUM_STEPS}",
    f"train.num_prompts={NUM_PROMPTS}",
    f"train.group_size={GROUP_SIZE}",
    f"checkpoint.every_steps={EVERY}",
    "checkpoint.keep_last=2",
    "checkpoint.keep_every=5",
    "journal.keep=all",
]


def make(directory: RunDirectory) -> None:
    """The whole run. Nothing is synced: it can be made again."""
    config = load_config(None, CONFIG)
    directory.create(config)
    directory.mark_saved()
    for attempt in range(1, NUM_ATTEMPTS + 1):
        start = AttemptStart(attempt=attempt, started_unix_s=time.time(), pid=1, num_workers=1)
        directory.log_attempt(start)
    ends = make_metrics(directory)
    make_checkpoints(directory, config, ends)
    make_journal(directory, config)


def make_metrics(directory: RunDirectory) -> list[LogPosition]:
    """A row for each step; returns where the file ended after each."""
    numbers = {name: i / 7 for i, name in enumerate(NUMBERS)}
    prints = {f"part_{i}": "0123456789abcdef" * 2 for i in range(12)}
    digest, num_bytes = xxhash.xxh3_128(), 0
    ends = [LogPosition(0, 0, digest.hexdigest())]
    with directory.metrics_path.open("wb") as file:
        for step in range(1, NUM_STEPS + NUM_AFTER + 1):
            row = step_row(
                step,
                attempt=1 + step * (NUM_ATTEMPTS - 1) // (NUM_STEPS + NUM_AFTER),
                accuracy=0.5 if step % 10 == 1 else None,
                history=f"{step:016x}",
                fingerprint=prints,
                **numbers,
            )
            line = json.dumps(row.to_json()).encode() + b"\n"
            digest.update(line)
            num_bytes += len(line)
            ends.append(LogPosition(step, num_bytes, digest.hexdigest()))
            file.write(line)
    return ends


def make_checkpoints(directory: RunDirectory, config: Config, ends: list[LogPosition]) -> None:
    """Every `EVERY` steps; tensor files are hard links to the first one's, state and manifest are its own."""
    shared = directory.path / "checkpoints"
    shared.mkdir()
    files, tensors = {}, []
    for part, number in TENSORS.items():
        name = part_file_name(part, 0, 1)
        names = [f"model.layers.{i // 12}.self_attn.projection_{i % 12}.weight" for i in range(number)]
        files[name] = save({tensor: np.zeros(0, np.float32) for tensor in names})
        shard = ShardEntry(name, (0,), (0,))
        tensors += [TensorEntry(part, tensor, None, "F32", (0,), (shard,), None) for tensor in names]
    entries = [FileEntry.of(name, data) for name, data in files.items()]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        step=0,
        created_unix_s=0.0,
        attempt=1,
        run_id=directory.run_id,
        parent=None,
        config_digest=config_digest(config),
        dataset_digest="0" * 32,
        environment=software(),
        world_size=1,
        parts=(*(PartEntry(part, Scope.SHARDED, has_json=False) for part in TENSORS), _metrics_part()),
        files=(),
        tensors=tuple(tensors),
    )
    first = shared / directory_name(EVERY)
    for step in range(EVERY, NUM_STEPS + 1, EVERY):
        path = shared / directory_name(step)
        path.mkdir()
        for name, data in files.items():
            if path == first:
                (path / name).write_bytes(data)
            else:
                os.link(first / name, path / name)
        state = encode_state({"shared": {"metrics": dataclasses.asdict(ends[step])}, "per_rank": [{}]})
        (path / STATE).write_bytes(state)
        of_step = dataclasses.replace(
            manifest, step=step, created_unix_s=time.time(), files=(*entries, FileEntry.of(STATE, state))
        )
        (path / MANIFEST).write_bytes(of_step.to_bytes())


def _metrics_part() -> PartEntry:
    return PartEntry("metrics", Scope.GLOBAL, has_json=True)


def make_journal(directory: RunDirectory, config: Config) -> None:
    """Segments of 64 rollouts for every step; real ones where a resume will look."""
    identity = JournalIdentity(directory.run_id, config_digest(config), NUM_ATTEMPTS)
    num_segments = -(-NUM_PROMPTS * GROUP_SIZE // SEGMENT_ROLLOUTS)
    directory.rollouts.mkdir()
    name, data = encode_segment(rollouts_of(1)[:SEGMENT_ROLLOUTS], identity, 1)
    base, num_links = directory.path / "segment", MAX_LINKS
    for step in range(1, NUM_STEPS + 1):
        path = directory.rollouts / step_name(step)
        path.mkdir()
        for number in range(1, num_segments + 1):
            if num_links == MAX_LINKS:
                base.unlink(missing_ok=True)
                base.write_bytes(data)
                num_links = 0
            os.link(base, path / str(dataclasses.replace(name, number=number)))
            num_links += 1
    base.unlink()
    for step in range(NUM_STEPS + 1, NUM_STEPS + NUM_AFTER + 2):
        path = directory.rollouts / step_name(step)
        path.mkdir()
        found = rollouts_of(step)
        if step == NUM_STEPS + NUM_AFTER + 1:
            found = found[: len(found) // 2]
        for number, start in enumerate(range(0, len(found), SEGMENT_ROLLOUTS), start=1):
            name, data = encode_segment(found[start : start + SEGMENT_ROLLOUTS], identity, number)
            (path / str(name)).write_bytes(data)


def rollouts_of(step: int) -> list[Rollout]:
    """All of one step, each of 64 tokens."""
    ids = tuple(range(64))
    completion = Completion(ids, tuple(-0.1 * i for i in ids), "some text " * 16, FinishReason.EOS)
    verdict = Verdict(1.0, VerdictReason.CORRECT, "4")
    return [
        Rollout(RolloutKey(step, index, sample), step - 1, prompt, completion, verdict)
        for index, prompt in enumerate(PROMPTS)
        for sample in range(GROUP_SIZE)
    ]


def command_s(*words: str, rounds: int) -> str:
    """Seconds of `yaoki WORDS` as a process: wall and processor."""
    wall, processor = [], []
    for _ in range(rounds):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "yaoki", *words], check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return f"{median(wall):6.2f} s, processor {median(processor):.2f} s"


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resume_start(directory: RunDirectory) -> dict[str, float]:
    """Seconds of what an attempt does before it builds anything, by phase."""
    seconds = {}
    config = directory.stored_config()
    with directory.lock():
        start = time.perf_counter()
        choice = directory.choose_checkpoint()
        assert choice.checkpoint is not None
        number = len(directory.attempts()) + 1
        seconds["choose"] = time.perf_counter() - start
        seconds["metrics"] = timed(lambda: open_metrics(directory, choice.checkpoint.path, number))
        identity = JournalIdentity(directory.run_id, config_digest(config), number)
        with RolloutJournal(directory.rollouts, identity, flush_seconds=1, flush_rollouts=64) as journal:
            next_step = choice.checkpoint.manifest.step + 1
            seconds["journal"] = timed(lambda: journal.open_step(next_step, next_step - 1, PROMPTS))
            assert journal.find([RolloutKey(next_step, NUM_PROMPTS - 1, GROUP_SIZE - 1)]) is not None
    return seconds


def open_metrics(directory: RunDirectory, checkpoint: Path, attempt: int) -> None:
    """Open the log and cut it back to the checkpoint; what is cut off is put back for the next round."""
    saved = json.loads((checkpoint / STATE).read_bytes())["shared"]["metrics"]
    log = MetricsLog(directory.metrics_path, directory.superseded_path(attempt))
    log.cut_back(LogPosition(**saved))
    for row in read_rows(directory.superseded_path(attempt)):
        log.log(row)
    log.close()


def at_a_save(directory: RunDirectory) -> dict[str, float]:
    """Seconds that each save adds for knowing what to prune."""
    catalog, policy = Catalog(directory.checkpoints), Policy(keep_last=2, keep_every=EVERY, keep_best=3)
    rows = read_rows(directory.metrics_path)
    catalog.decide(policy, held_out_accuracies(rows))
    return {
        "read metrics": timed(lambda: read_rows(directory.metrics_path)),
        "decide what to prune": timed(lambda: catalog.decide(policy, held_out_accuracies(rows))),
    }


def main() -> None:
    """Make the run if it is not there, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True, help="of the run; kept, and made if missing")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    directory = RunDirectory(arguments.directory)
    if not directory.exists:
        making = RunDirectory(directory.path.with_name(directory.path.name + ".making"))
        print(f"made in {timed(lambda: make(making)):.0f} s")
        making.path.rename(directory.path)
    path, rounds = str(directory.path), arguments.rounds
    print(f"python and imports of a command  {command_s('--version', rounds=rounds)}")
    for words in (["status"], ["status", "--json"], ["checkpoints", "list"]):
        print(f"yaoki {' '.join(words):<26} {command_s(*words, path, rounds=rounds)}")
    phases = [resume_start(directory) for _ in range(rounds)]
    for phase in phases[0]:
        print(f"start of a resume: {phase:<13} {median(found[phase] for found in phases):6.2f} s")
    print(f"start of a resume: all           {median(sum(found.values()) for found in phases):6.2f} s")
    for what, seconds in at_a_save(directory).items():
        print(f"at a save: {what:<21} {seconds:6.2f} s")


if __name__ == "__main__":
    main()
