"""What can be said of a run from its files alone, without torch and without touching anything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yaoki.commands.checkpoints import list_checkpoints, rows_of
from yaoki.config.compat import config_digest
from yaoki.errors import CorruptCheckpointError
from yaoki.journal.browse import count_replayable
from yaoki.journal.metrics import Row, held_out_accuracies, read_metrics
from yaoki.journal.retention import journal_summary
from yaoki.runs.directory import RunDirectory
from yaoki.runs.environment import software
from yaoki.runs.grade import grade_of


def run_status(directory: RunDirectory, *, read_all: bool = False) -> dict[str, Any]:
    """Attempts, progress, checkpoints, journal, and what a resume would do, as plain JSON.

    Without `read_all` the checkpoint to resume from is judged by its manifest and the sizes of its files, and
    the rows that it counts as its own are believed.
    """
    directory.require_run()
    config = directory.stored_config()
    rows = read_metrics(directory.metrics_path)
    parent = directory.parent
    holder = directory.lock_holder()
    accuracies = held_out_accuracies(rows, directory.summary())
    return {
        "run": str(directory.path),
        "run_id": directory.run_id,
        "parent": None if parent is None else asdict(parent),
        "step": rows[-1]["step"] if rows else 0,
        "steps": config.train.steps,
        "in_use_by": holder,
        "reward": rows[-1]["reward"] if rows else None,
        "held_out_accuracy": accuracies[max(accuracies)] if accuracies else None,
        "train_seconds": rows[-1]["timing"]["train_s"] if rows else 0.0,
        "attempts": _attempts(directory, rows, holder),
        "checkpoints": [asdict(checkpoint) for checkpoint in list_checkpoints(directory, rows)],
        "journal": asdict(journal_summary(directory.rollouts)),
        "resume": _resume(directory, read_all),
    }


def _attempts(directory: RunDirectory, rows: Sequence[Row], holder: str | None) -> list[dict[str, Any]]:
    """Each attempt with the number of its steps that count; the first steps of a fork are its parent's."""
    inherited = 0 if directory.parent is None else directory.parent.step
    num_steps = Counter(row["attempt"] for row in rows if row["step"] > inherited)
    attempts = directory.attempts()
    if attempts and holder == f"process {attempts[-1]['pid']}":
        attempts[-1]["outcome"] = "running"
    return [attempt | {"num_steps": num_steps[attempt["attempt"]]} for attempt in attempts]


def _resume(directory: RunDirectory, read_all: bool) -> dict[str, Any]:
    """What the next `yaoki train` would do, as far as it can be told without torch: the device and the
    threads cannot be, nor whether a part of the journal is damaged."""
    config = directory.stored_config()
    try:
        choice = directory.choose_checkpoint(read_all=read_all)
        if read_all and choice.checkpoint is not None:
            rows_of(directory, choice.checkpoint)
    except CorruptCheckpointError as error:
        return {"possible": False, "problem": error.message}
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
    return {
        "possible": True,
        "finished": summary is not None and summary["steps"] == verdict.step >= config.train.steps,
        "grade": verdict.grade,
        "step": verdict.step,
        "checkpoint": verdict.checkpoint,
        "num_workers": choice.checkpoint.manifest.world_size if choice.checkpoint else None,
        "read_all": read_all,
        "num_replayed_steps": replay.num_steps,
        "num_reused_rollouts": replay.num_rollouts,
        "refused": list(verdict.refusals),
        "reasons": list(verdict.reasons),
    }
