"""Settings of the algorithm: how rewards become gradients, and how far the policy may move."""

from typing import Literal, Self

from pydantic import Field, model_validator

from yaoki.config.fields import STATE, Fraction, Section


class AlgorithmConfig(Section):
    """How rewards become gradients; `docs/algorithm.md` has the formulas."""

    name: str = Field("ppo", min_length=1, json_schema_extra=STATE)
    """A row of the table of algorithms: `ppo` trains a critic and uses GAE; `grpo` has no critic and compares
    within the group."""
    gamma: Fraction = 1.0
    """Discount of GAE."""
    gae_lambda: Fraction = 1.0
    """Lambda of GAE; 1 with gamma 1 makes the advantage the final reward minus the value."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of the whole batch to mean 0 and variance 1 (ppo only)."""
    scale_by_std: bool = True
    """Divide GRPO's group-relative advantage by the group's standard deviation (grpo only)."""
    clip_eps: float = Field(0.2, gt=0, lt=1)
    """Bound of PPO's probability ratio: 1 - clip_eps to 1 + clip_eps."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus in the policy's loss."""
    importance_cap: float = Field(0.0, ge=0)
    """Weigh each token's advantage by the learner's probability of it over the engine's, at most this; for
    engines that compute otherwise than the learner. 0 means no weights; 2 is usual."""


class KLConfig(Section):
    """Keeping the policy near the reference; off by default, as in ORZ."""

    coef: float = Field(0.0, ge=0)
    """Weight of the KL term (start value when adaptive)."""
    use: Literal["loss", "reward"] = "loss"
    """Add it to the policy's loss, or subtract it from each token's reward."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of KL(policy || reference) from the sampled tokens."""
    controller: Literal["fixed", "adaptive"] = Field("fixed", json_schema_extra=STATE)
    """Keep coef, or steer it towards target."""
    target: float = Field(0.05, gt=0)
    """KL per token that the adaptive controller aims at."""
    horizon: float = Field(10000.0, gt=0)
    """Rollouts over which the adaptive controller corrects an error."""
    measure: bool = Field(False, json_schema_extra=STATE)
    """Load the reference and report kl_to_ref even when coef is 0."""
    refresh_reference_every_epoch: bool = Field(False, json_schema_extra=STATE)
    """Make the policy the new reference whenever an epoch of the data ends."""

    @property
    def needs_reference(self) -> bool:
        return self.coef > 0 or self.measure or self.controller == "adaptive"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.controller == "adaptive" and self.coef == 0:
            raise ValueError(
                "kl.controller and kl.coef: an adaptive controller scales coef; set kl.coef above 0"
            )
        if self.refresh_reference_every_epoch and not self.needs_reference:
            raise ValueError(
                "kl.refresh_reference_every_epoch and kl.coef: there is no reference to refresh; "
                "set kl.coef above 0 or kl.measure=true"
            )
        return self
