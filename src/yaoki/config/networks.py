"""Settings of policy and critic: where they start, how they are optimised."""

from typing import Literal

from pydantic import Field

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
    num_mini_batches: Positive = 1
    """Optimizer steps per pass over the batch; 1 is strictly on-policy."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the model's attention while training."""


class PolicyConfig(NetworkConfig):
    """The model that is trained to reason."""

    init_from: str = Field("builtin:tiny", min_length=1, json_schema_extra=STATE)
    """`builtin:tiny` (pre-trained here on the task family), `builtin:tiny-random`, the folder of a
    Hugging Face causal LM, or its hub name."""
    trust_remote_code: bool = Field(False, json_schema_extra=FREE)
    """Let a hub model run its own Python code."""


class CriticConfig(NetworkConfig):
    """The model that estimates the value of each state (algorithms with a critic only)."""

    init_from: str = Field("", json_schema_extra=STATE)
    """Where the backbone starts; empty means where the policy starts."""
    lr: float = Field(5e-6, ge=0)
    """Peak learning rate of AdamW."""
    num_mini_batches: Positive = 12
    """Optimizer steps per pass over the batch."""
    value_clip: float = Field(0.2, ge=0)
    """Values may move this far from the old ones before the loss stops rewarding it; 0 means no clip."""
