"""`yaoki status`: a run as its files describe it. Needs no torch and changes nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from yaoki.commands.checkpoints import CheckpointInfo, UnusableCheckpoint, list_checkpoints, rows_of
from yaoki.config.compat import config_digest
from yaoki.errors import CorruptCheckpointError
from yaoki.journal.browse import count_replayable
from yaoki.journal.metrics import held_out_accuracies, read_rows
from yaoki.journal.retention import JournalSummary, journal_summary
from yaoki.journal.step_row import StepRow
from yaoki.runs.directory import RunDirectory
from yaoki.runs.environment import software
from yaoki.runs.grade import Grade, grade_of
from yaoki.runs.lineage import Parent
from yaoki.runs.records import AttemptRecord


class AttemptReport(AttemptRecord):
    """An attempt and its steps."""

    num_steps: int
    """Rows of metrics.jsonl that it wrote; the first ones of a fork are its parent's."""


@dataclass(frozen=True, slots=True)
class ResumeReport:
    """What the next `yaoki train` will do, as far as files tell: not the device and the number of threads,
    nor whether a segment of the journal is damaged."""

    finished: bool
    grade: Grade
    step: int
    checkpoint: str | None
    num_workers: int | None
    """As many as wrote the checkpoint; the grade holds for them."""
    read_all: bool
    """The checkpoint was read in full, not judged by its manifest and sizes."""
    num_replayed_steps: int
    num_reused_rollouts: int
    refused: tuple[str, ...]
    """Newer checkpoints that cannot be used, with the reason."""
    reasons: tuple[str, ...]
    """Why the grade is not exact."""
    possible: Literal[True] = True


@dataclass(frozen=True, slots=True)
class NoResume:
    """Why the next `yaoki train` will fail."""

    problem: str
    possible: Literal[False] = False


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A run: progress, attempts, checkpoints, journal, and what a resume will do."""

    run: str
    run_id: str
    parent: Parent | None
    step: int
    steps: int
    """`train.steps`."""
    in_use_by: str | None
    """The process that trains the run now."""
    reward: float | None
    """Mean reward of the last step."""
    held_out_accuracy: float | None
    train_seconds: float
    attempts: list[AttemptReport]
    checkpoints: list[CheckpointInfo | UnusableCheckpoint]
    journal: JournalSummary
    resume: ResumeReport | NoResume


def run_status(directory: RunDirectory, *, read_all: bool = False) -> StatusReport:
    """The state of a run.

    Without `read_all` the checkpoint to resume from is judged by its manifest and the sizes of its files, and
    metrics.jsonl is not compared with it.
    """
    directory.require_run()
    rows = read_rows(directory.metrics_path)
    holder = directory.lock_holder()
    accuracies = held_out_accuracies(rows, directory.final_accuracy())
    return StatusReport(
        run=str(directory.path),
        run_id=directory.run_id,
        parent=directory.parent,
        step=rows[-1].step if rows else 0,
        steps=directory.stored_config().train.steps,
        in_use_by=holder,
        reward=rows[-1].reward if rows else None,
        held_out_accuracy=accuracies[max(accuracies)] if accuracies else None,
        train_seconds=rows[-1].timing.train_s if rows else 0.0,
        attempts=_attempts(directory, rows, holder),
        checkpoints=list_checkpoints(directory, rows),
        journal=journal_summary(directory.rollouts),
        resume=_resume(directory, read_all),
    )


def _attempts(directory: RunDirectory, rows: Sequence[StepRow], holder: str | None) -> list[AttemptReport]:
    inherited = 0 if directory.parent is None else directory.parent.step
    num_steps = Counter(row.attempt for row in rows if row.step > inherited)
    attempts = directory.attempts()
    if attempts and holder == f"process {attempts[-1].pid}":
        attempts[-1] = attempts[-1].model_copy(update={"outcome": "running"})
    return [
        AttemptReport(**attempt.model_dump(), num_steps=num_steps[attempt.attempt]) for attempt in attempts
    ]


def _resume(directory: RunDirectory, read_all: bool) -> ResumeReport | NoResume:
    config = directory.stored_config()
    try:
        choice = directory.choose_checkpoint(read_all=read_all)
        if read_all and choice.checkpoint is not None:
            rows_of(directory, choice.checkpoint)
    except CorruptCheckpointError as error:
        return NoResume(error.message)
    verdict = grade_of(choice, software(), config, directory.parent)
    summary = directory.summary()
    replay = count_replayable(
        directory.rollouts,
        verdict.step,
        config.train.steps if config.journal.enabled else verdict.step,
        num_wanted=config.train.num_prompts * config.train.group_size,
        run_id=directory.run_id,
        config_digest=config_digest(config),
    )
    return ResumeReport(
        finished=summary is not None and summary.steps == verdict.step >= config.train.steps,
        grade=verdict.grade,
        step=verdict.step,
        checkpoint=verdict.checkpoint,
        num_workers=choice.checkpoint.manifest.world_size if choice.checkpoint else None,
        read_all=read_all,
        num_replayed_steps=replay.num_steps,
        num_reused_rollouts=replay.num_rollouts,
        refused=verdict.refusals,
        reasons=verdict.reasons,
    )
