"""The contract between the training loop and whatever generates completions.

An engine's only state is its weights. Everything random comes in the request; tokens come back as they were
sampled, with their log-probabilities. Ranks that share an engine make the same calls in the same order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from yaoki.errors import YaokiError
from yaoki.types import Completion, Poll

OnFinished = Callable[[int, Completion], None]
"""Receives the index of a request and its finished completion."""


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
        """Version of the loaded weights; -1 before the first load, and once they are dropped."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a completion depends on its own request alone, but for rounding, not on the others.

        If so, each completion is kept as it finishes, and any requests may be generated together. If not,
        only the same micro-batch gives the same bits: all of it is kept, or nothing.
        """
        ...

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """One completion per request, in order.

        `on_finished` is called once for each: as it finishes, in any order, if the engine is batch-invariant,
        else when all are done, in order. What it or `poll` raises comes through and leaves the engine as it
        was. Ranks that share an engine ask for the same and all get all; `on_finished` is called on the first
        of them only, and StopRequested from the `poll` of one is raised on all. An engine that is not
        batch-invariant gives the same bits for the same requests under the same weights. YaokiError while
        there are no weights.
        """
        ...

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of all tokens but the first, each given those before it, at temperature 1."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Replace all weights by the learner's; after an error the engine has none."""
        ...

    def sleep(self) -> None:
        """Free as much device memory as possible, for training. The weights may be dropped."""
        ...

    def wake(self) -> None:
        """Prepare for `load_weights` after `sleep`."""
        ...


def check_names_and_shapes(
    shapes: Mapping[str, torch.Size], weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Pass the weights through one by one; YaokiError for one that is left over, misshapen or missing.

    shapes: of every weight of the engine's model. A missing weight is noticed only at the end of the
    iteration, so exhaust it before the weights are used.
    """
    missing = dict(shapes)
    for name, tensor in weights:
        if name not in missing:
            raise _differ([name])
        if (expected := missing.pop(name)) != tensor.shape:
            raise YaokiError(f"{name} is {tuple(expected)} in the engine, {tuple(tensor.shape)} pushed")
        yield name, tensor
    if missing:
        raise _differ(sorted(missing))


def _differ(names: list[str]) -> YaokiError:
    return YaokiError(
        f"the engine's model and the pushed weights differ in {', '.join(names[:5])}",
        hint="learner and engine must be built from the same model",
    )


def valid_unicode(text: str) -> str:
    """Decoded text without lone surrogates, which slow tokenizers may produce and no file format holds."""
    return text.encode("utf-8", "replace").decode("utf-8")
