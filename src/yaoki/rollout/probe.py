"""Whether an engine holds the weights that were pushed: its log-probabilities of a text beside the learner's.

A push that answers "done" is not believed: one kind was seen to leave neither the old nor the new weights
behind. Knows no engine in particular, and nothing of training.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.errors import WeightSyncError
from yaoki.models.policy import token_logprobs
from yaoki.rollout.engine import RolloutEngine

PROBE_TEXT = "What is 47+38-12? <think>47+38=85, 85-12=73</think><answer>\\boxed{73}</answer>"
PROBE_TOKENS = 64
"""At most so many tokens of the text."""


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of the probe, at least two."""
    return tuple(tokenizer(PROBE_TEXT)["input_ids"][:PROBE_TOKENS])


@torch.no_grad()
def model_logprobs(model: PreTrainedModel, token_ids: Sequence[int]) -> list[float]:
    """What RolloutEngine.logprobs gives, by one forward pass; with a sharded model all ranks must ask.

    The model is left in evaluation mode.
    """
    ids = torch.tensor([list(token_ids)], device=model.device)
    logprobs, _ = token_logprobs(model.eval(), ids, 1, 1.0)
    return [float(logprob) for logprob in logprobs[0]]


def tolerance(precision: Literal["float32", "bfloat16"]) -> float:
    """How far engine and learner may be apart on a token when both hold the same weights, in nats.

    precision: the coarser one of the two. Measured between transformers and vLLM on a CPU, on random models
    of 1 to 494 million parameters, the largest one also with logits made 8 times larger (then the probe's
    mean log-probability is -22). The largest gap on a token of the probe was:

    - float32: 2e-6 to 5e-6, and 3e-5 with the large logits. One step of AdamW at a rate of 1e-6 moves the
      probe by 4e-4 (1 million parameters) to 3e-3: weights that are a single step old are noticed.
    - bfloat16: 0.03 to 0.05, and 0.3 with the large logits. Wrong weights are noticed (they were seen to be
      more than 2 apart), those of the last step are not: their version must do.
    """
    return {"float32": 3e-4, "bfloat16": 0.5}[precision]


def check_weights(
    engine: RolloutEngine,
    policy_version: int,
    token_ids: Sequence[int],
    learner_logprobs: Sequence[float],
    tolerance: float,
) -> float:
    """The largest difference; WeightSyncError if it is above the tolerance, or the version another.

    token_ids: the probe; learner_logprobs: the learner's for all of its tokens but the first, as from
    `model_logprobs`, under the weights that were pushed as `policy_version`.
    """
    if engine.policy_version != policy_version:
        raise WeightSyncError(
            f"the engine has weights of version {engine.policy_version}, the policy is at {policy_version}",
            hint="push the weights after every change of the policy, before anything is sampled",
        )
    pairs = zip(engine.logprobs(token_ids), learner_logprobs, strict=True)
    gaps = [abs(engines - learners) for engines, learners in pairs]
    gap = max(gaps, key=lambda gap: (math.isnan(gap), gap))
    if not gap <= tolerance:  # a NaN is not within any tolerance
        raise WeightSyncError(
            f"after the push of policy version {policy_version}, the engine's log-probabilities of the probe "
            f"are up to {gap:.3g} from the learner's; rounding explains {tolerance:.3g}",
            hint="the engine holds other weights than the learner: what it samples would be worthless. "
            "engine.type=transformers takes weights by copying them",
        )
    return gap
