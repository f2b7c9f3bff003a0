"""The algorithms as values: what each needs, how it gives credit, what its policy minimises, and over what it
averages.

A new algorithm is a function for whatever is new in it, and a row in ALGORITHMS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from yaoki.config.algorithm import AlgorithmConfig
from yaoki.config.schema import Config
from yaoki.errors import UsageError, did_you_mean
from yaoki.rl.advantages import gae, group_relative_advantages, masked_moments, shaped_rewards, whiten
from yaoki.rl.batch import Experience
from yaoki.rl.losses import PolicyLoss, clipped_surrogate, importance_weights, token_mean

Credit = Callable[[Experience, AlgorithmConfig, Tensor | None], Experience]
"""(scored experience, settings, penalty `[N, S]` to subtract from each token's reward or None) -> the
experience with `advantages`, and `returns` if there is a critic."""

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, AlgorithmConfig], PolicyLoss]
"""(logprobs, old_logprobs, advantages, loss_mask, settings), tensors `[N, S]` -> the loss of each masked
token."""

Aggregation = Callable[[Tensor, Tensor, int], Tensor]
"""(token losses `[T]`, loss_mask `[N, S]`, masked tokens of the whole mini-batch) -> this micro-batch's
addend to the loss of the mini-batch; scalar."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the table."""

    needs_critic: bool
    needs_groups: bool
    """Compares the rollouts of a prompt with one another, so a group has at least two."""
    credit: Credit
    objective: Objective
    aggregate: Aggregation

    def with_advantages(
        self, experience: Experience, settings: AlgorithmConfig, penalty: Tensor | None
    ) -> Experience:
        """Credit for every token, weighted for an engine that is not quite the learner if that is asked
        for."""
        credited = self.credit(experience, settings, penalty)
        if not settings.importance_cap:
            return credited
        assert credited.old_logprobs is not None
        assert credited.advantages is not None
        weights = importance_weights(
            credited.old_logprobs, credited.rollout_logprobs, credited.loss_mask, settings.importance_cap
        )
        return replace(credited, advantages=credited.advantages * weights)


def gae_credit(experience: Experience, settings: AlgorithmConfig, penalty: Tensor | None) -> Experience:
    """Generalised advantage estimation against the critic's values; whitened over the whole batch."""
    assert experience.values is not None, "score() comes before credit"
    mask = experience.loss_mask
    rewards = shaped_rewards(experience.rewards, mask, penalty)
    advantages, returns = gae(rewards, experience.values, mask, settings.gamma, settings.gae_lambda)
    if settings.whiten_advantages:
        advantages = whiten(advantages, mask, masked_moments(advantages, mask))
    return replace(experience, advantages=advantages, returns=returns)


def group_relative_credit(
    experience: Experience, settings: AlgorithmConfig, penalty: Tensor | None
) -> Experience:
    """Each rollout's reward against the mean of its group, on every token that it sampled."""
    assert penalty is None, "refused by `algorithm_of`"
    advantages = group_relative_advantages(
        experience.rewards, experience.group, experience.loss_mask, scale_by_std=settings.scale_by_std
    )
    return replace(experience, advantages=advantages)


def ppo_objective(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, settings: AlgorithmConfig
) -> PolicyLoss:
    """PPO's clipped surrogate on each token's own ratio."""
    return clipped_surrogate(logprobs, old_logprobs, advantages, loss_mask, clip_eps=settings.clip_eps)


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "ppo": Algorithm(
            needs_critic=True,
            needs_groups=False,
            credit=gae_credit,
            objective=ppo_objective,
            aggregate=token_mean,
        ),
        "grpo": Algorithm(
            needs_critic=False,
            needs_groups=True,
            credit=group_relative_credit,
            objective=ppo_objective,
            aggregate=token_mean,
        ),
    }
)


def algorithm_of(config: Config) -> Algorithm:
    """The algorithm that the config names.

    Raises:
        UsageError: there is none of that name, or other settings contradict it.
    """
    name = config.algorithm.name
    if name not in ALGORITHMS:
        raise UsageError(
            f"algorithm.name: there is no algorithm {name!r}", hint=did_you_mean(name, ALGORITHMS)
        )
    algorithm = ALGORITHMS[name]
    if algorithm.needs_groups and config.train.group_size < 2:
        raise UsageError(
            f"algorithm.name and train.group_size: {name} compares within a group, which has "
            f"{config.train.group_size} rollout",
            hint="set train.group_size to 2 or more",
        )
    if not algorithm.needs_critic and config.train.freeze_policy_steps:
        raise UsageError(
            f"algorithm.name and train.freeze_policy_steps: {name} has no critic to warm up",
            hint="set train.freeze_policy_steps=0",
        )
    if not algorithm.needs_critic and config.kl.needs_reference and config.kl.use == "reward":
        raise UsageError(
            f"algorithm.name and kl.use: {name} has no rewards per token, so its KL term is in the loss",
            hint='set kl.use="loss"',
        )
    return algorithm
