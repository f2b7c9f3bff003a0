"""A run's small files, and the end of a step, where journal, metrics and checkpoints meet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import make_config
from tests.support.metrics import read_metrics, step_row
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.retention import Policy
from yaoki.journal.metrics import LogPosition, MetricsLog, read_rows
from yaoki.journal.step_row import StepRow
from yaoki.runs.directory import RunDirectory
from yaoki.runs.records import AttemptEnd, AttemptStart, RunSummary

from . import journal_scenarios as rollouts
from .checkpoint_scenarios import newest, save
from .children import Acknowledge
from .scenario import tree


def row(step: int) -> StepRow:
    """Also of another length than those beside it."""
    return step_row(step, history="x" * 10 * step)


def open_log(root: Path, attempt: int = 1) -> MetricsLog:
    return MetricsLog(root / "metrics.jsonl", RunDirectory(root).superseded_path(attempt))


def append_rows(root: Path, steps: Sequence[int]) -> LogPosition:
    log = open_log(root)
    for step in steps:
        log.log(row(step))
    log.sync()
    log.close()
    return log.position()


def kept_rows(root: Path) -> list[StepRow]:
    """The rows of the log, which must be the first ones."""
    rows = read_rows(root / "metrics.jsonl")
    assert rows == [row(step) for step in range(1, len(rows) + 1)]
    return rows


def resumed_log(root: Path) -> MetricsLog:
    """A new attempt's, cut back to the checkpoint of step 3."""
    RunDirectory(root).remove_leftovers()
    log = open_log(root, attempt=2 + len(list(root.glob("attempts/*"))))
    log.cut_back(LogPosition(**json.loads((root / "position.json").read_text())))
    return log


def go_on_with_rows(root: Path) -> None:
    log = resumed_log(root)
    for step in (4, 5, 6):
        log.log(row(step))
    log.sync()
    log.close()


def keep_position(root: Path, position: LogPosition) -> None:
    """As a checkpoint does."""
    facts = {name: getattr(position, name) for name in position.__slots__}
    (root / "position.json").write_text(json.dumps(facts))


@dataclass(frozen=True)
class AppendRows:
    """Three rows; the first is synced alone."""

    name: str = "append metrics"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        keep_position(root, append_rows(root, (1, 2, 3)))

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        log = resumed_log(root)
        for step in (4, 5, 6):
            log.log(row(step))
            if step != 5:
                log.sync()
                acknowledge(str(step))
        log.close()

    def check(self, root: Path, acknowledged: list[str]) -> str:
        rows = kept_rows(root)
        assert len(rows) >= max([3, *map(int, acknowledged)])
        return f"{len(rows) - 3} new rows"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        go_on_with_rows(root)

    def end(self, root: Path) -> object:
        return (root / "metrics.jsonl").read_bytes(), [name for name in tree(root) if ".tmp" in name]


@dataclass(frozen=True)
class CutBack:
    """Three of six rows are cut off and kept elsewhere; then one of them is written again."""

    name: str = "cut metrics back"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        keep_position(root, append_rows(root, (1, 2, 3)))
        append_rows(root, (4, 5, 6))

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        log = resumed_log(root)
        acknowledge("cut")
        log.log(row(4))
        log.sync()
        acknowledge("row 4")
        log.close()

    def check(self, root: Path, acknowledged: list[str]) -> str:
        rows = kept_rows(root)
        assert len(rows) >= 3 + ("row 4" in acknowledged)
        cut_off = [found for path in root.rglob("superseded.jsonl") for found in read_metrics(path)]
        known = {found.step for found in rows} | {found["step"] for found in cut_off}
        assert known >= {1, 2, 3, 4, 5, 6}, "what a step did before must not be forgotten"
        return f"{len(rows) - 3} later rows"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        go_on_with_rows(root)

    def end(self, root: Path) -> object:
        return (root / "metrics.jsonl").read_bytes(), [name for name in tree(root) if ".tmp" in name]


SUMMARY = RunSummary(
    steps=9,
    attempts=1,
    accuracy_before=None,
    accuracy_after=0.5,
    best_accuracy=0.5,
    best_step=9,
    num_rollouts=144,
    num_tokens=1000,
    train_seconds=1.5,
)


@dataclass(frozen=True)
class SmallFiles:
    """A run is made, its config replaced, an attempt begins and ends."""

    name: str = "make a run"
    num_sampled: int = 15

    def prepare(self, root: Path) -> None:
        pass

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        directory = RunDirectory(root / "run")
        if not directory.exists:
            directory.create(make_config())
            acknowledge("made")  # a process that only finds it relies on it no sooner than on its own attempt
        directory.log_attempt(AttemptStart(attempt=1, started_unix_s=1.0, pid=1, num_workers=1))
        acknowledge("begun")
        directory.store_config(make_config("train.steps=9"))
        acknowledge("9 steps")
        directory.mark_saved()
        directory.write_summary(SUMMARY)
        acknowledge("summary")
        directory.log_attempt(AttemptEnd(outcome="finished", ended_unix_s=2.0))
        acknowledge("ended")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        directory = RunDirectory(root / "run")
        if not directory.exists:
            assert not acknowledged
            return "no run"
        steps = directory.stored_config().train.steps
        assert steps == 9 or (steps == 6 and "9 steps" not in acknowledged)
        attempts = directory.attempts()
        assert attempts or "begun" not in acknowledged
        assert directory.summary() == SUMMARY or "summary" not in acknowledged
        assert "ended" not in acknowledged or attempts[-1].outcome == "finished"
        return "a run"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        self.work(root, acknowledge)

    def end(self, root: Path) -> object:
        directory = RunDirectory(root / "run")
        return list(tree(root)), directory.stored_config(), directory.attempts()[-1].outcome


@dataclass(frozen=True)
class StepEnd:
    """Step 3 from its rollouts to its checkpoint, and what may go then."""

    name: str = "a step to its end"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        store = CheckpointStore(root / "checkpoints")
        for step in (1, 2):
            rollouts.fill(root, step, range(rollouts.NUM_PROMPTS))
            append_rows(root, [step])
        save(store, 1)

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        self._until(root, acknowledge, last_step=3)

    def check(self, root: Path, acknowledged: list[str]) -> str:
        chosen = newest(root / "checkpoints")
        assert chosen is not None
        step = chosen[0]
        rows = kept_rows(root)
        assert len(rows) >= step, "a checkpoint refers to its rows"
        while rollouts.found(root, step + 1) == {0, 1, 2}:
            step += 1
        assert step >= 3 if "generated 3" in acknowledged else step >= 2
        return f"checkpoint of step {chosen[0]}, replay to {step}"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        self._until(root, acknowledge, last_step=4)

    def end(self, root: Path) -> object:
        return newest(root / "checkpoints"), kept_rows(root), rollouts.end(root)

    def _until(self, root: Path, acknowledge: Acknowledge, last_step: int) -> None:
        """Resume, replay, go on: what the trainer does, without a model."""
        store = CheckpointStore(root / "checkpoints")
        chosen = store.choose().checkpoint
        assert chosen is not None
        first = chosen.manifest.step + 1
        log = open_log(root, attempt=2)
        have = len(read_metrics(root / "metrics.jsonl"))
        for step in range(first, last_step + 1):
            rollouts.complete(root, step)
            acknowledge(f"generated {step}")
            if step > have:
                log.log(row(step))
            if step >= 3:
                log.sync()
                save(store, step)
                acknowledge(f"saved {step}")
                store.prune(Policy(keep_last=1))
                oldest = min(candidate.step for candidate in Catalog(root / "checkpoints").candidates())
                with rollouts.journal(root, attempt=2) as journal:
                    journal.prune(oldest, "needed")
        log.close()


RUNS = (AppendRows(), CutBack(), SmallFiles(), StepEnd())
