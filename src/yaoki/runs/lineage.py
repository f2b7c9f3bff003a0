"""The parent of a forked run, and the settings in which a fork may differ from it.

A fork's first checkpoint was written by its parent: the one case in which a run continues from a state that
was made with another config. Every later checkpoint is the fork's own and is compared with the fork's config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yaoki.checkpoint.manifest import Manifest
from yaoki.config.compat import compare
from yaoki.config.schema import Config
from yaoki.errors import RefusedError

_TASKS = (
    "train.seed",
    "data.files",
    "data.format",
    "data.problem_column",
    "data.answer_column",
    "data.on_bad_row",
    "data.family",
    "data.tasks_per_epoch",
    "data.template",
    "data.max_prompt_tokens",
)
"""Settings that decide which task is at which position of an epoch."""

_FIXED = {
    "algorithm.name": "policy and critic are trained together, or there is no critic",
    "kl.controller": "the controller's state is of the other kind",
    "policy.init_from": "the weights come from the checkpoint",
    "critic.init_from": "the weights come from the checkpoint",
    "engine.type": "rollouts of another engine have other bits",
}
"""Settings that no fork can change, and why not."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The run from which this one was forked."""

    run_id: str
    path: str
    step: int
    """Step of the checkpoint that was adopted."""
    config_digest: str
    dataset_digest: str
    changes: tuple[str, ...]
    """Settings with which the fork's trajectory differs from its parent's."""

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Parent":
        """From the JSON of `dataclasses.asdict`."""
        return cls(**{**saved, "changes": tuple(saved["changes"])})

    @property
    def begins_epoch(self) -> bool:
        """Whether the fork begins with the next epoch, because the current one has other tasks or another
        order."""
        return any(change in _TASKS for change in self.changes)

    @property
    def has_other_data(self) -> bool:
        """Whether tasks to train on or to evaluate on differ on purpose."""
        return self.begins_epoch or any(change.startswith("eval.") for change in self.changes)

    def is_source_of(self, manifest: Manifest) -> bool:
        """Whether this is the checkpoint that the fork adopted, and not one of its own."""
        theirs = (self.run_id, self.step, self.config_digest, self.dataset_digest)
        return theirs == (manifest.run_id, manifest.step, manifest.config_digest, manifest.dataset_digest)


def changes_of_path(before: Config, after: Config) -> tuple[str, ...]:
    """The settings with which a fork's trajectory differs from its parent's.

    RefusedError for those that the saved state does not fit.
    """
    changes = compare(before, after)
    refused = [f"  {change}  ({_FIXED[change.name]})" for change in changes if change.name in _FIXED]
    if before.kl.needs_reference != after.kl.needs_reference:
        had, has = (
            "a reference" if config.kl.needs_reference else "no reference" for config in (before, after)
        )
        refused.append(f"  kl.coef, kl.measure: the checkpoint holds {had}, the fork would need {has}")
    if refused:
        raise RefusedError(
            "the checkpoint cannot go on with these changes:\n" + "\n".join(refused),
            hint="start a new run from its weights instead: `yaoki export RUN --at STEP --to DIR`, then "
            "`yaoki train ... --run NEW policy.init_from=DIR/policy critic.init_from=DIR/critic`",
        )
    return tuple(
        change.name
        for change in changes
        if change.kind != "free" or change.name in _TASKS or change.name == "eval.files"
    )
