"""Settings of the networks and of how they learn. Knows nothing of models or optimizers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from yaoki.config.fields import FREE, STATE, Count, Decay, Positive, Section


class NetworkConfig(Section):
    """What policy and critic have in common: where they start, how they learn."""

    lr: float = Field(1e-6, ge=0)
    """Peak learning rate of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's moment decays."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator floor."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    schedule: Literal["constant", "linear"] = "constant"
    """After warm-up: stay at lr, or go down linearly to min_lr."""
    warmup_steps: Count = 50
    """Steps of linear warm-up from lr / warmup_steps."""
    decay_steps: Count = 0
    """Step at which the linear schedule reaches min_lr (linear only). Not tied to train.steps, so that
    raising train.steps never bends a curve already walked."""
    min_lr: float = Field(0.0, ge=0)
    """Floor of the linear schedule."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the model's attention while training."""


class PolicyConfig(NetworkConfig):
    """The model that is trained to reason."""

    init_from: str = Field("builtin:tiny", min_length=1, json_schema_extra=STATE)
    """`builtin:tiny` (pre-trained here on the task family), `builtin:tiny-random`, the folder of a
    Hugging Face causal LM, or its hub name."""
    trust_remote_code: bool = Field(False, json_schema_extra=FREE)
    """Let a hub model run its own Python code."""
    num_mini_batches: Positive = 1
    """Optimizer steps per pass over the batch; 1 is strictly on-policy."""


class CriticConfig(NetworkConfig):
    """The model that estimates the value of each state (ppo only)."""

    init_from: str = Field("", json_schema_extra=STATE)
    """Where the backbone starts; empty means where the policy starts."""
    lr: float = Field(5e-6, ge=0)
    """Peak learning rate of AdamW."""
    num_mini_batches: Positive = 12
    """Optimizer steps per pass over the batch."""
    value_clip: float = Field(0.2, ge=0)
    """Values may move this far from the old ones before the loss stops rewarding it; 0 means no clip."""


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
