"""Grades a resume (exact, elastic, fork) before it starts: for `train`, and for `status` as far as its facts
go."""

from dataclasses import dataclass
from typing import Literal

from yaoki.checkpoint.catalog import Choice
from yaoki.config.schema import Config
from yaoki.runs.environment import Environment, differences
from yaoki.runs.lineage import Parent

Grade = Literal["fresh", "exact", "elastic", "fork"]


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
            "fork": "fork: the parent's state, from here on another run because " + "; ".join(self.reasons),
            "fresh": "",
        }
        return f"resuming from {self.checkpoint}, grade {promise[self.grade]}"


def grade_of(choice: Choice, now: Environment, config: Config, parent: Parent | None) -> ResumeVerdict:
    """What continuing from this choice would be. Touches nothing, so `status` can ask too."""
    refusals = tuple(str(refusal) for refusal in choice.refusals)
    if choice.checkpoint is None:
        return ResumeVerdict("fresh", 0, None, refusals, ())
    manifest = choice.checkpoint.manifest
    reasons = differences({**manifest.environment, "num_workers": manifest.world_size}, now)
    if not config.run.deterministic:
        reasons.append("run.deterministic is false")
    if not config.engine.traits.is_deterministic:
        reasons.append(f"what {config.engine.type} samples anew has other bits")
    changes = parent.changes if parent is not None and parent.is_source_of(manifest) else ()
    grade: Grade = "fork" if changes else "elastic" if reasons else "exact"
    reasons = [*(f"{name} is not the parent's" for name in changes), *reasons]
    return ResumeVerdict(
        grade=grade,
        step=manifest.step,
        checkpoint=choice.checkpoint.path.name,
        refusals=refusals,
        reasons=tuple(reasons),
    )
