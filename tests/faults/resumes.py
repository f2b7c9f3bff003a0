"""A whole resume of a tiny run that was killed, in a process of its own, where a fault befalls one effect.

The run has a checkpoint of step 1, a row and the rollouts of step 2, half of those of step 3, and all that a
killed attempt can leave half done. Keeps beside the run a record of what was sampled, and what was durable.
"""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaoki.fs
import yaoki.runs.directory
from tests.support.harness import Ended, make_config, run, run_to_end
from yaoki.journal.journal import RolloutJournal
from yaoki.types import Rollout

from .effects import Effect, Entry, Fault
from .recorder import Recorder

STEPS = 3
TINY = [
    "train.num_prompts=2",
    "train.group_size=2",
    "engine.batch_size=2",
    "engine.max_new_tokens=4",
    "critic.num_mini_batches=1",
    "eval.every_steps=0",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=1",
    "journal.flush_seconds=3600",
]
CONFIG = make_config(*TINY, f"train.steps={STEPS}")

_VARYING = ("attempts", "tensorboard")

Place = tuple[int, int, int]
"""Step, prompt, sample."""


def make_killed_run(path: Path) -> None:
    """Killed in step 3, when the first of its two micro-batches was durable; saved last after step 1."""
    run_to_end(path, make_config(*TINY, "train.steps=1"))
    unsaved = make_config(*TINY, f"train.steps={STEPS}", "checkpoint.every_steps=0")
    ended = run(path, unsaved, lambda: _watch_samples(path, die_in_step=STEPS))
    assert ended.exit_code == -signal.SIGKILL, ended.log
    _leave_things_half_done(path)
    shutil.rmtree(path / "tensorboard")  # its writer would wait for a new second


def _leave_things_half_done(path: Path) -> None:
    """What a kill at other instants leaves: a save, a part, lines; and a part that the disk has spoilt."""
    checkpoints = path / "checkpoints"
    shutil.copytree(checkpoints / "step-00000001", checkpoints / "step-00000002.tmp")
    (checkpoints / "step-00000002.tmp" / "manifest.json").unlink()
    (part,) = (path / "rollouts" / f"step-{STEPS:08d}").iterdir()
    part.with_name(part.name + ".tmp").write_bytes(part.read_bytes()[:100])
    spoilt = part.with_name(part.name.replace("part-00001", "part-00009"))
    assert spoilt != part
    spoilt.write_bytes(part.read_bytes()[:-1])
    (path / "saved.json").rename(path / "saved.json.tmp")
    for name in ("metrics.jsonl", "attempts.jsonl"):
        with (path / name).open("ab") as file:
            file.write(b'{"st')


def resume(path: Path, strike: tuple[Effect, Fault] | None = None) -> Ended:
    """An attempt, with a recorder under all that changes files."""
    return run(path, CONFIG, lambda: _watch(path, strike))


def effects(path: Path) -> list[Effect]:
    """Of the last attempt, in order."""
    return [Effect(*fields) for fields in _lines(_effects_path(path))]


def was_struck(path: Path) -> bool:
    """Whether the last attempt came to the effect that was to go wrong."""
    return [] in _lines(_effects_path(path))


def sampled_twice(path: Path) -> list[Place]:
    """Rollouts that were sampled again after they had been made durable."""
    durable: set[Place] = set()
    again = []
    for kind, places in _lines(_samples_path(path)):
        found = [tuple(place) for place in places]
        if kind == "sampled":
            again += [place for place in found if place in durable]
        else:
            durable |= set(found)
    return again


def names(path: Path) -> list[str]:
    """Every name in the run, but for those that depend on the number of attempts or on the clock."""
    found = [child.relative_to(path) for child in sorted(path.rglob("*"))]
    return [str(name) for name in found if name.parts[0] not in _VARYING or _is_half_done(name)]


def _is_half_done(name: Path) -> bool:
    return any(part.endswith((".tmp", ".trash")) for part in name.parts)


def copy(path: Path, target: Path) -> Path:
    """The run, and what is known of its samples."""
    shutil.copytree(path, target)
    shutil.copy(_samples_path(path), _samples_path(target))
    return target


def _watch(path: Path, strike: tuple[Effect, Fault] | None) -> None:
    _watch_samples(path)
    _effects_path(path).write_bytes(b"")
    log = os.open(_effects_path(path), os.O_WRONLY | os.O_APPEND)

    def tell(entry: Entry) -> None:
        os.write(log, json.dumps([entry.effect.kind, entry.effect.path, entry.effect.nth]).encode() + b"\n")

    recorder = Recorder(path, strike=strike, on_strike=lambda: os.write(log, b"[]\n"), after_each=tell)
    yaoki.fs.os = recorder  # type: ignore[assignment]
    yaoki.runs.lock.os = recorder  # type: ignore[assignment]  # the lock


def _watch_samples(path: Path, die_in_step: int | None = None) -> None:
    """Keep record of what is sampled and of what is durable; die once the first of a step is."""
    log = os.open(_samples_path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    append, sync = RolloutJournal.append, RolloutJournal.sync
    waiting: list[Place] = []

    def tell(kind: str, places: list[Place]) -> None:
        os.write(log, json.dumps([kind, places]).encode() + b"\n")

    def append_and_tell(self: RolloutJournal, rollouts: Sequence[Rollout]) -> None:
        places = [tuple(found.key) for found in rollouts]
        tell("sampled", places)
        append(self, rollouts)
        waiting.extend(places)
        if places[0][0] == die_in_step:
            self.sync()
            os.kill(os.getpid(), signal.SIGKILL)

    def sync_and_tell(self: RolloutJournal) -> None:
        sync(self)
        tell("durable", waiting)
        waiting.clear()

    RolloutJournal.append, RolloutJournal.sync = append_and_tell, sync_and_tell  # type: ignore[method-assign]


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _effects_path(path: Path) -> Path:
    return path.with_name(path.name + ".effects")


def _samples_path(path: Path) -> Path:
    return path.with_name(path.name + ".samples")
