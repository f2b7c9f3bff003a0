"""Kinds of configs, and experiences of the handmade rollouts."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.support.learners import never, rollouts
from yaoki.learner.learner import Learner
from yaoki.rl.batch import Experience

KL_LOSS = ("kl.coef=0.3", "kl.use=loss")
KL_REWARD = ("kl.coef=0.3", "kl.use=reward", "kl.estimator=k1")
GRPO = ("algorithm.name=grpo", "train.group_size=4")
SMALL = "train.micro_batch_tokens=20"


def scored(made: Learner, kl_coef: float = 0.0, *, gaps: bool = False) -> Experience:
    return made.with_advantages(made.score(rollouts(gaps=gaps), never), kl_coef)


def off_policy(experience: Experience) -> Experience:
    """As if the policy had moved since: some ratios are clipped, some are not."""
    assert experience.old_logprobs is not None
    noise = torch.randn(experience.old_logprobs.shape, generator=torch.Generator().manual_seed(4))
    return replace(experience, old_logprobs=experience.old_logprobs + 0.2 * noise)


def chosen(column: Tensor | None, experience: Experience) -> Tensor:
    assert column is not None
    return column[experience.loss_mask].double()
