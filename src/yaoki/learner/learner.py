"""Scoring rollouts and learning from them: the two halves of a step that touch the networks.

Works on one batch at a time and keeps nothing between steps but the networks themselves. Knows nothing
of prompts, files, checkpoints or who asked for the update.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from yaoki.config.schema import Config
from yaoki.errors import NonFiniteError
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import full_tensor
from yaoki.learner.stats import CriticStats, PolicyStats, UpdateStats, mean
from yaoki.models.critic import token_values
from yaoki.models.policy import token_logprobs
from yaoki.ranks.world import World
from yaoki.rl.advantages import gae, group_relative_advantages, masked_moments, shaped_rewards, whiten
from yaoki.rl.batch import Experience, balance_groups, micro_batches, mini_batches, pad_rollouts
from yaoki.rl.losses import (
    entropy_from_logits,
    importance_weights,
    kl_estimate,
    kl_loss,
    masked_mean,
    policy_loss,
    value_loss,
)
from yaoki.seeding import Purpose, seed
from yaoki.types import Rollout

Poll = Callable[[], None]
"""Raises StopRequested when the run was asked to stop."""


class Learner:
    """Policy, critic and reference on this rank's device.

    Every rank holds all rows and scores of a batch, and computes on its share of them: whole groups, balanced
    by tokens. All ranks make the same calls, and go through as many micro-batches as the one with most.
    """

    def __init__(
        self,
        policy: TrainedNetwork,
        critic: TrainedNetwork | None,
        reference: PreTrainedModel | None,
        config: Config,
        world: World,
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.reference = reference
        self._config = config
        self._world = world
        self._device = policy.model.device

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], poll: Poll) -> Experience:
        """Experience with old_logprobs; with ref_logprobs and values where there is a model for them.

        `poll` is called before each micro-batch and may raise.
        """
        experience = pad_rollouts(
            [r.prompt.token_ids for r in rollouts],
            [r.completion.token_ids for r in rollouts],
            [r.completion.logprobs for r in rollouts],
            [r.verdict.reward for r in rollouts],
            [r.prompt_index for r in rollouts],
        )
        old = torch.zeros_like(experience.rollout_logprobs)
        ref = torch.zeros_like(old) if self.reference is not None else None
        values = torch.zeros_like(old) if self.critic is not None else None
        for rows, batch in self._micro_batches(experience):
            poll()
            columns, num_rows = slice(0, batch.token_ids.shape[1]), len(rows)
            old[rows, columns] = self._logprobs(self.policy.model.eval(), batch)[:num_rows]
            if self.reference is not None and ref is not None:
                ref[rows, columns] = self._logprobs(self.reference, batch)[:num_rows]
            if self.critic is not None and values is not None:
                found = token_values(self.critic.model.eval(), batch.token_ids).cpu()
                values[rows, columns] = found[:num_rows]
        for column in (old, ref, values):
            if column is not None:
                self._world.sum(column)  # each row was scored on one rank and is zero on the others
        return replace(experience, old_logprobs=old, ref_logprobs=ref, values=values)

    def with_advantages(self, experience: Experience, kl_coef: float) -> Experience:
        """Credit for every token: GAE against the critic, or the group-relative advantage without one."""
        train = self._config.train
        if experience.values is None:
            advantages = group_relative_advantages(
                experience.rewards, experience.group, experience.loss_mask, scale_by_std=train.scale_by_std
            )
            return replace(experience, advantages=self._corrected(advantages, experience))
        penalty = self.kl_to_ref(experience) if self._config.kl.use == "reward" else None
        rewards = shaped_rewards(experience.rewards, experience.loss_mask, penalty, kl_coef)
        advantages, returns = gae(
            rewards, experience.values, experience.loss_mask, train.gamma, train.gae_lambda
        )
        if train.whiten_advantages:
            moments = masked_moments(advantages, experience.loss_mask)
            advantages = whiten(advantages, experience.loss_mask, moments)
        return replace(experience, advantages=self._corrected(advantages, experience), returns=returns)

    def _corrected(self, advantages: Tensor, experience: Experience) -> Tensor:
        """Weighted for an engine that is not quite the learner, if that is asked for."""
        cap = self._config.train.importance_cap
        if not cap:
            return advantages
        assert experience.old_logprobs is not None
        old, rollout = experience.old_logprobs, experience.rollout_logprobs
        return advantages * importance_weights(old, rollout, experience.loss_mask, cap)

    def kl_to_ref(self, experience: Experience) -> Tensor | None:
        """Estimate `[N, S]` of KL(policy || reference) before the update; None without a reference."""
        if experience.old_logprobs is None or experience.ref_logprobs is None:
            return None
        estimator = self._config.kl.estimator
        return kl_estimate(experience.old_logprobs, experience.ref_logprobs, estimator)

    def update(self, experience: Experience, step: int, kl_coef: float, poll: Poll) -> UpdateStats:
        """Train the critic on its mini-batches, then the policy on its own, once per update epoch.

        `experience` has advantages; `step` counts from 0 and orders the mini-batches. `poll` is called
        before each micro-batch; when it raises, the networks are between two states and must not be saved.
        Raises NonFiniteError for a loss or gradient that is not finite, unless such steps are to be skipped.
        """
        policy_steps: list[PolicyStats | None] = []
        critic_steps: list[CriticStats | None] = []
        num_rows = len(experience.num_tokens)
        train_policy = step >= self._config.train.freeze_policy_steps
        for epoch in range(self._config.train.update_epochs):
            order = seed(self._config.train.seed, Purpose.MINI_BATCH, step, epoch)
            if self.critic is not None:
                for rows in mini_batches(num_rows, self._config.critic.num_mini_batches, order):
                    critic_steps.append(self._critic_step(self.critic, experience.rows(rows), poll))
            if train_policy:
                for rows in mini_batches(num_rows, self._config.policy.num_mini_batches, order):
                    policy_steps.append(self._policy_step(experience.rows(rows), kl_coef, poll))
        self.policy.num_batches += train_policy
        if self.critic is not None:
            self.critic.num_batches += 1
        num_skipped = policy_steps.count(None) + critic_steps.count(None)
        return UpdateStats(mean(policy_steps), mean(critic_steps), num_skipped)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights, whole, one after another; every rank must ask for all of them."""
        for name, tensor in self.policy.weights().items():
            yield name, full_tensor(tensor)

    def offload(self) -> None:
        """Make room on the device until `onload`, if train.offload asks for it."""
        self._move_to(torch.device("cpu"))

    def onload(self) -> None:
        """Get ready to score and to update."""
        self._move_to(self._device)

    def _move_to(self, device: torch.device) -> None:
        if not self._config.train.offload:
            return
        for network in (self.policy, self.critic):
            if network is not None:
                network.move(lambda tensor: tensor.to(device))
        if self.reference is not None:
            self.reference._apply(lambda tensor: tensor.to(device))

    def refresh_reference(self) -> None:
        """The policy of this moment becomes the reference."""
        if self.reference is not None:
            own = self.reference.state_dict()
            for name, tensor in self.policy.weights().items():
                own[name].copy_(tensor)

    def _policy_step(self, experience: Experience, kl_coef: float, poll: Poll) -> PolicyStats | None:
        """One optimizer step of the policy on one mini-batch; None if it was left out."""
        num_tokens = experience.num_loss_tokens
        entropy_coef = self._config.train.entropy_coef
        sums = torch.zeros(4, dtype=torch.float64)
        model = self.policy.model.train()
        for _, batch in self._micro_batches(experience):
            poll()
            first = _first_response_column(batch)
            mask = batch.loss_mask[:, first:]
            logprobs, logits = token_logprobs(model, batch.token_ids, first, self._config.engine.temperature)
            surrogate = policy_loss(
                logprobs,
                _columns(batch.old_logprobs, first),
                _columns(batch.advantages, first),
                mask,
                clip_eps=self._config.train.clip_eps,
                num_tokens=num_tokens,
            )
            with torch.set_grad_enabled(entropy_coef > 0):
                entropy = masked_mean(entropy_from_logits(logits), mask, num_tokens=num_tokens)
            loss = surrogate.loss - entropy_coef * entropy
            if batch.ref_logprobs is not None and self._config.kl.use == "loss" and kl_coef > 0:
                loss = loss + kl_coef * kl_loss(
                    logprobs,
                    _columns(batch.ref_logprobs, first),
                    mask,
                    estimator=self._config.kl.estimator,
                    num_tokens=num_tokens,
                )
            loss.backward()
            sums += torch.tensor(
                [
                    float(loss.detach()),
                    float(entropy.detach()),
                    float(surrogate.num_clipped) / num_tokens,
                    float(surrogate.approx_kl_sum) / num_tokens,
                ],
                dtype=torch.float64,
            )
        loss_sum, entropy_sum, clipped, approx_kl = self._world.sum(sums).tolist()
        grad_norm = self._apply(self.policy, "policy", loss_sum)
        if grad_norm is None:
            return None
        return PolicyStats(loss_sum, entropy_sum, clipped, approx_kl, grad_norm, self.policy.lr)

    def _critic_step(self, critic: TrainedNetwork, experience: Experience, poll: Poll) -> CriticStats | None:
        """One optimizer step of the critic on one mini-batch; None if it was left out."""
        num_tokens = experience.num_loss_tokens
        total = torch.zeros(1, dtype=torch.float64)
        model = critic.model.train()
        for _, batch in self._micro_batches(experience):
            poll()
            loss = value_loss(
                token_values(model, batch.token_ids),
                _columns(batch.values, 0),
                _columns(batch.returns, 0),
                batch.loss_mask,
                value_clip=self._config.critic.value_clip or None,
                num_tokens=num_tokens,
            )
            loss.backward()
            total += float(loss.detach())
        loss_sum = float(self._world.sum(total))
        grad_norm = self._apply(critic, "critic", loss_sum)
        return None if grad_norm is None else CriticStats(loss_sum, grad_norm, critic.lr)

    def _apply(self, network: TrainedNetwork, name: str, loss: float) -> float | None:
        """Step with the gradients that are there; returns their norm, or None if the step is left out."""
        grad_norm = network.clip_gradients()
        if math.isfinite(loss) and math.isfinite(grad_norm):
            network.step()
            return grad_norm
        if self._config.run.on_nonfinite == "skip":
            network.drop_gradients()
            return None
        raise NonFiniteError(
            f"the {name}'s loss is {loss}, the norm of its gradient {grad_norm}: there is nothing to learn",
            hint="nothing of it was saved, the last checkpoint and the rollouts are as they were; leave such "
            f"optimizer steps out with run.on_nonfinite=skip, or lower {name}.lr in a fork",
        )

    def _logprobs(self, model: PreTrainedModel, batch: Experience) -> Tensor:
        """`[B, S]` on the CPU, zero outside of the mask."""
        first = _first_response_column(batch)
        logprobs, _ = token_logprobs(model, batch.token_ids, first, self._config.engine.temperature)
        full = torch.zeros_like(batch.rollout_logprobs)
        full[:, first:] = torch.where(batch.loss_mask[:, first:], logprobs, 0.0)
        return full.cpu()

    def _micro_batches(self, experience: Experience) -> Iterator[tuple[list[int], Experience]]:
        """Row numbers and rows of each of this rank's micro-batches, the rows on the learner's device.

        A rank that has fewer than another one goes on with a row whose tokens count for nothing, and no row
        number: the passes through a sharded network are done by all ranks together.
        """
        num_tokens = experience.num_tokens.tolist()
        shares = balance_groups(experience.group.tolist(), num_tokens, self._world.size)
        budget = self._config.train.micro_batch_tokens
        cut = [
            [[share[i] for i in rows] for rows in micro_batches([num_tokens[row] for row in share], budget)]
            for share in shares
        ]
        mine = cut[self._world.rank]
        for rows in mine:
            yield rows, self._on_device(experience.rows(rows))
        shortest = experience.rows([num_tokens.index(min(num_tokens))])
        nothing = replace(shortest, loss_mask=torch.zeros_like(shortest.loss_mask))
        for _ in range(max(map(len, cut)) - len(mine)):
            yield [], self._on_device(nothing)

    def _on_device(self, batch: Experience) -> Experience:
        columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return replace(batch, **{name: t.to(self._device) for name, t in columns.items() if t is not None})


def _first_response_column(batch: Experience) -> int:
    return max(1, int(batch.loss_mask.int().argmax(dim=1).min()))


def _columns(column: Tensor | None, first: int) -> Tensor:
    assert column is not None, "score() and with_advantages() come before update()"
    return column[:, first:]
