"""What can be said of a run from its files alone, without torch and without touching anything."""

import time
from typing import Any

from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.layout import Kind
from yaoki.checkpoint.verify import read_manifest
from yaoki.errors import CorruptCheckpointError
from yaoki.journal.metrics import read_metrics
from yaoki.run.directory import RunDirectory
from yaoki.run.environment import software
from yaoki.run.grade import judge


def run_status(directory: RunDirectory) -> dict[str, Any]:
    """Attempts, progress, checkpoints, and what a resume would do, as plain JSON."""
    directory.require_run()
    config = directory.stored_config()
    rows = read_metrics(directory.metrics_path)
    holder = directory.lock_holder()
    attempts = directory.attempts()
    if attempts and holder == f"process {attempts[-1]['pid']}":
        attempts[-1]["outcome"] = "running"
    accuracies = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    return {
        "run": str(directory.path),
        "run_id": directory.run_id,
        "step": rows[-1]["step"] if rows else 0,
        "steps": config.train.steps,
        "in_use_by": holder,
        "reward": rows[-1]["reward"] if rows else None,
        "held_out_accuracy": accuracies[-1] if accuracies else None,
        "train_seconds": rows[-1]["timing"]["train_s"] if rows else 0.0,
        "attempts": attempts,
        "checkpoints": _checkpoints(directory),
        "resume": _resume(directory),
    }


def _checkpoints(directory: RunDirectory) -> list[dict[str, Any]]:
    """Every candidate, newest first; sizes from the manifest, contents not read."""
    found: list[dict[str, Any]] = []
    for candidate in Catalog(directory.checkpoints).candidates():
        entry: dict[str, Any] = {"name": candidate.path.name, "step": candidate.step}
        if candidate.kind is Kind.UNFINISHED:
            found.append(entry | {"problem": candidate.explanation})
            continue
        try:
            manifest = read_manifest(candidate.path)
            age_s = round(time.time() - manifest.created_unix_s)
            found.append(
                entry | {"size_bytes": manifest.size_bytes, "attempt": manifest.attempt, "age_s": age_s}
            )
        except CorruptCheckpointError as error:
            found.append(entry | {"problem": error.message})
    return found


def _resume(directory: RunDirectory) -> dict[str, Any]:
    """What the next `yaoki train` would do, as far as it can be told without torch (device and threads
    cannot be); reads the newest checkpoint in full."""
    try:
        choice = directory.choose_checkpoint()
    except CorruptCheckpointError as error:
        return {"possible": False, "problem": error.message}
    verdict = judge(choice, software(), directory.stored_config())
    return {
        "possible": True,
        "grade": verdict.grade,
        "step": verdict.step,
        "checkpoint": verdict.checkpoint,
        "refused": list(verdict.refusals),
        "reasons": list(verdict.reasons),
    }
