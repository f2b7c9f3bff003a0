"""A network together with what trains it: AdamW, its schedule, its gradient norm.

Everything that changes while training is in `weights()`, `moments()` and `num_batches`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from yaoki.config.networks import NetworkConfig
from yaoki.learner.shard import full_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of one parameter, by torch's own names."""


@dataclass(frozen=True, slots=True)
class LRSchedule:
    """Learning rate as a pure function of how many batches a network has been trained on."""

    peak: float
    kind: Literal["constant", "linear"]
    warmup_steps: int
    decay_steps: int
    floor: float

    def lr(self, num_batches: int) -> float:
        """The rate for the batch that follows `num_batches` trained ones."""
        if num_batches < self.warmup_steps:
            return self.peak * (num_batches + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        done = (num_batches - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        return max(self.floor, self.peak + (self.floor - self.peak) * min(done, 1.0))


class TrainedNetwork:
    """One network that learns: policy or critic."""

    def __init__(self, model: PreTrainedModel, config: NetworkConfig) -> None:
        self.model = model
        self.schedule = LRSchedule(
            config.lr, config.schedule, config.warmup_steps, config.decay_steps, config.min_lr
        )
        self.num_batches = 0
        self.num_mini_batches = config.num_mini_batches
        self._max_grad_norm = config.max_grad_norm
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    @property
    def lr(self) -> float:
        """The learning rate of the coming batch."""
        return self.schedule.lr(self.num_batches)

    def clip_gradients(self) -> float:
        """Clip the gradients to the largest norm; returns their norm before that."""
        return float(
            full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm))
        )

    def step(self) -> None:
        """One optimizer step; drops the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr
        self._optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def move(self, moved: Callable[[Tensor], Tensor]) -> None:
        """Replace every weight and moment by what `moved` returns; earlier references keep the old
        tensors."""
        self.model._apply(moved)
        for state in self._optimizer.state.values():
            state |= {moment: moved(state[moment]) for moment in ("exp_avg", "exp_avg_sq")}

    def weights(self) -> dict[str, Tensor]:
        """The live weights by name; tied ones share their storage."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def moments(self) -> dict[str, Tensor]:
        """AdamW's live state as `<moment>/<parameter>`; empty before the first step."""
        return {
            f"{moment}/{self._names[parameter]}": state[moment]
            for parameter, state in self._optimizer.state.items()
            for moment in _MOMENTS
        }

    def make_moments(self) -> None:
        """Allocate the moments as AdamW does in its first step, for a restore to read into."""
        for parameter in self._names:
            self._optimizer.state[parameter] = {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                "step": torch.tensor(0.0),
            }

    def drop_moments(self) -> None:
        """Back to the state before the first step."""
        self._optimizer.state.clear()
