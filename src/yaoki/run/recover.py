"""Putting a run back: which checkpoint, whether it still fits, how exact the continuation is.

Restores everything or raises; what was asked for and cannot be had is never replaced by a fresh start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from yaoki.checkpoint.catalog import Choice, ValidCheckpoint
from yaoki.checkpoint.reader import load
from yaoki.config.compat import config_digest
from yaoki.config.schema import Config
from yaoki.errors import RefusedError
from yaoki.run.environment import Environment, differences
from yaoki.run.state import RunState

Grade = Literal["fresh", "exact", "elastic"]


@dataclass(frozen=True, slots=True)
class ResumeVerdict:
    """How an attempt begins, and what it promises."""

    grade: Grade
    step: int
    checkpoint: str | None
    """Name of the checkpoint it starts from."""
    refusals: tuple[str, ...]
    """Newer checkpoints that were passed over, with the reason."""
    reasons: tuple[str, ...]
    """Why the grade is not exact."""

    def describe(self) -> str:
        """One line for people."""
        if self.checkpoint is None:
            return "starting at step 0"
        promise = {
            "exact": "exact: the same bits as a run that was never interrupted",
            "elastic": "elastic: same state, prompts, seeds and schedule; rounding differs because "
            + "; ".join(self.reasons),
            "fresh": "",
        }
        return f"resuming from {self.checkpoint}, grade {promise[self.grade]}"


def judge(choice: Choice, now: Environment, config: Config) -> ResumeVerdict:
    """What continuing from this choice would be. Touches nothing, so `status` can ask too."""
    refusals = tuple(str(refusal) for refusal in choice.refusals)
    if choice.checkpoint is None:
        return ResumeVerdict("fresh", 0, None, refusals, ())
    manifest = choice.checkpoint.manifest
    reasons = differences(manifest.environment, now)
    if not config.run.deterministic:
        reasons.append("run.deterministic is false")
    return ResumeVerdict(
        grade="elastic" if reasons else "exact",
        step=manifest.step,
        checkpoint=choice.checkpoint.path.name,
        refusals=refusals,
        reasons=tuple(reasons),
    )


def require_same_data(checkpoint: ValidCheckpoint, dataset_digest: str, config: Config) -> None:
    """RefusedError if tasks or config are not those that the checkpoint was made with."""
    manifest = checkpoint.manifest
    if manifest.dataset_digest != dataset_digest:
        raise RefusedError(
            f"the training data has changed: {checkpoint.path.name} was made with the dataset "
            f"{manifest.dataset_digest}, now it is {dataset_digest}",
            hint="put the files of data.files back as they were; to train on other data, start a new run "
            "with --run and policy.init_from",
        )
    if manifest.config_digest != config_digest(config):
        raise RefusedError(
            f"{checkpoint.path.name} was made with another config (digest {manifest.config_digest}, "
            f"now {config_digest(config)})",
            hint="config.json in the run directory was changed by hand: put it back",
        )


def restore(checkpoint: ValidCheckpoint, state: RunState) -> None:
    """Put every part of the inventory back; missing and left-over parts are errors."""
    loaded = load(checkpoint.path, state.scopes(), verified=checkpoint.manifest)
    state.restore(loaded.parts)


def inventory_table(state: RunState) -> Mapping[str, str]:
    """Part -> what it holds, for people."""
    return {part.name: part.holds for part in state.inventory()}
