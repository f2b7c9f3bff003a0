"""The small records in a run's directory, as types: what an attempt, a start and an end are."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 2
"""Version of the run directory's format, in run.json."""


class Record(BaseModel):
    """A JSON object in a run's directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AttemptStart(Record):
    """First line of an attempt in attempts.jsonl."""

    attempt: int
    """From 1."""
    started_unix_s: float
    pid: int
    num_workers: int


class AttemptEnd(Record):
    """Second line of an attempt; missing if its process was killed."""

    outcome: Literal["finished", "stopped", "failed"]
    reason: str | None = None
    ended_unix_s: float


class AttemptRecord(AttemptStart):
    """An attempt with its end."""

    outcome: Literal["finished", "stopped", "failed", "killed", "running"] = "killed"
    reason: str | None = None
    ended_unix_s: float | None = None


class StartRecord(Record):
    """start.json: what the first attempt found at step 0."""

    environment: str
    """Digest of the environment."""
    fingerprint: dict[str, str]
    """Digest of every fingerprinted part."""


class RunSummary(Record):
    """summary.json, written when train.steps is reached."""

    steps: int
    attempts: int
    accuracy_before: float | None
    """First held-out accuracy that was measured."""
    accuracy_after: float | None
    """Held-out accuracy of the final policy."""
    best_accuracy: float | None
    best_step: int
    num_rollouts: int
    num_tokens: int
    """Response tokens that were sampled."""
    train_seconds: float
