"""The contract between the training loop and whatever generates completions.

An engine's only state is its weights. Everything random comes in the request; tokens come back as they
were sampled, with their log-probabilities. An engine knows nothing of rewards, groups or training.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from yaoki.types import Completion

Poll = Callable[[], None]
"""Called between tokens; raises StopRequested when the run was asked to stop."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample."""

    prompt_ids: tuple[int, ...]
    seed: int
    """Decides every token of this completion, whatever else is in the batch."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; fixed for the life of an engine."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...]


class RolloutEngine(Protocol):
    """Generates completions with the weights that were loaded last."""

    @property
    def policy_version(self) -> int:
        """Version of the loaded weights; -1 before the first load."""
        ...

    def generate(self, requests: Sequence[Request], poll: Poll) -> list[Completion]:
        """One completion per request, in order.

        The requests are one micro-batch: the same requests under the same weights give the same bits.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Take over the learner's weights; all of them, or an error."""
        ...
