"""Pushes weights to the engine, then verifies it: both must give the same log-probabilities of a probe text.

An engine that reports success is not believed: one way of pushing left neither the old nor the new weights
behind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from transformers import PreTrainedTokenizerBase

from yaoki.errors import NonFiniteError, WeightSyncError
from yaoki.learner.learner import Learner
from yaoki.models.policy import model_logprobs
from yaoki.rollout.engine import RolloutEngine

PROBE_TEXT = "What is 47+38-12? <think>47+38=85, 85-12=73</think><answer>\\boxed{73}</answer>"
PROBE_TOKENS = 64
"""Largest number of tokens of the text that are used."""


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of the probe, at least two."""
    return tuple(tokenizer(PROBE_TEXT)["input_ids"][:PROBE_TOKENS])


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest difference between engine and learner with the same weights, in nats."""

    largest: float
    """On any token of the probe."""
    mean: float
    """On average over its tokens, plus"""
    mean_share: float
    """this for every nat of their mean log-probability."""

    def allows(self, engines: Sequence[float], learners: Sequence[float]) -> bool:
        """False if any gap is NaN."""
        gaps = _gaps(engines, learners)
        surprise = fmean(abs(learner) for learner in learners)
        is_near = max(gaps) <= self.largest and fmean(gaps) <= self.mean + self.mean_share * surprise
        return all(map(math.isfinite, gaps)) and is_near


def tolerance(precision: Literal["float32", "bfloat16"]) -> Tolerance:
    """The tolerance that rounding explains.

    precision: the coarser one of engine and learner. Measured on a CPU:

    - float32, transformers against vLLM, random models of 1 to 494 million parameters, the largest one also
      with logits made 8 times larger: 2e-6 to 5e-6 on a token, and 3e-5 with the large logits. One step of
      AdamW at a rate of 1e-6 moves the probe by 4e-4 (1 million parameters) to 3e-3: weights that are a
      single step old are noticed.
    - bfloat16, on the built-in base, in 45 steps of training: up to 0.84 on a token, 0.07 on average, of a
      mean log-probability of -10; on random models with weights made up to 6 times larger 0.15 % to 1.3 % of
      the mean log-probability. A single wrong matrix in any of the first two layers: 0.75 to 6.9 on average.
      Weights of the step before are not noticed: only their version is.
    """
    if precision == "float32":
        return Tolerance(largest=3e-4, mean=math.inf, mean_share=0.0)
    return Tolerance(largest=math.inf, mean=0.1, mean_share=0.03)


def check_weights(
    engine: RolloutEngine,
    policy_version: int,
    token_ids: Sequence[int],
    learner_logprobs: Sequence[float],
    tolerance: Tolerance,
) -> float:
    """Largest difference; WeightSyncError if rounding does not explain it, or if the version differs.

    token_ids: the probe; learner_logprobs: of all its tokens but the first, under the weights that were
    pushed as `policy_version`.
    """
    if engine.policy_version != policy_version:
        raise WeightSyncError(
            f"the engine has weights of version {engine.policy_version}, the policy is at {policy_version}",
            hint="push the weights after every change of the policy, before anything is sampled",
        )
    engine_logprobs = engine.logprobs(token_ids)
    gaps = _gaps(engine_logprobs, learner_logprobs)
    largest = max(gaps, key=lambda gap: (math.isnan(gap), gap))
    if not tolerance.allows(engine_logprobs, learner_logprobs):
        raise WeightSyncError(
            f"after the push of policy version {policy_version}, the engine's log-probabilities of the probe "
            f"are up to {largest:.3g} from the learner's, {fmean(gaps):.3g} on average, which rounding does "
            "not explain",
            hint="the engine holds other weights than the learner: what it samples would be worthless. If it "
            "is vLLM's, engine.type=transformers takes weights by copying them",
        )
    return largest


def _gaps(engines: Sequence[float], learners: Sequence[float]) -> list[float]:
    return [abs(engine - learner) for engine, learner in zip(engines, learners, strict=True)]


@dataclass(frozen=True, slots=True)
class WeightSync:
    """Pushes weights, and verifies each push by the probe."""

    engine: RolloutEngine
    learner: Learner
    probe: tuple[int, ...]
    """Token ids of the text."""
    tolerance: Tolerance

    def push(self, policy_version: int) -> list[float]:
        """Load the learner's weights into the engine; a collective of all ranks.

        Returns the learner's log-probabilities of the probe, for `verify`. NonFiniteError if they are not
        finite.
        """
        self.engine.load_weights(self.learner.weights(), policy_version)
        expected = model_logprobs(self.learner.policy.model, self.probe)
        if not all(map(math.isfinite, expected)):
            raise NonFiniteError(
                "the policy's log-probabilities are not finite, and neither, probably, are its weights",
                hint="training has diverged, or the model is damaged; the last checkpoint is untouched: fork "
                "the run from it with a lower learning rate",
            )
        return expected

    def verify(self, policy_version: int, expected: Sequence[float]) -> None:
        """Compare the engine's log-probabilities of the probe; WeightSyncError if it computes with other
        weights."""
        check_weights(self.engine, policy_version, self.probe, expected, self.tolerance)
