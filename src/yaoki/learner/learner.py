"""Scoring rollouts and learning from them: the two halves of a step that touch the networks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from yaoki.config.algorithm import AlgorithmConfig, KLConfig
from yaoki.config.schema import TrainConfig
from yaoki.errors import NonFiniteError
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import full_tensor
from yaoki.models.critic import token_values
from yaoki.models.policy import token_logprobs
from yaoki.ranks.world import World
from yaoki.rl.algorithm import Algorithm
from yaoki.rl.batch import Experience, balance_groups, micro_batches, mini_batches, pad_rollouts
from yaoki.rl.losses import entropy_from_logits, kl_estimate, kl_loss, masked_mean, value_loss
from yaoki.seeding import Purpose, step_seed
from yaoki.types import Poll, Rollout


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """What the policy's optimizer steps did, averaged over them."""

    loss: float
    entropy: float
    """Mean over response tokens, in nats."""
    clip_fraction: float
    """Share of tokens on which the clip stopped the gradient."""
    approx_kl: float
    """Mean over tokens of KL(old policy || policy) at the time of each step (k3), in nats."""
    grad_norm: float
    """Before clipping."""
    lr: float


@dataclass(frozen=True, slots=True)
class CriticStats:
    """What the critic's optimizer steps did, averaged over them."""

    loss: float
    grad_norm: float
    lr: float


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One update; None for a network that was not trained."""

    policy: PolicyStats | None
    critic: CriticStats | None
    num_skipped: int
    """Optimizer steps skipped because a loss or a gradient was not finite."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """The sections of the config that scoring and updating read."""

    algorithm: AlgorithmConfig
    train: TrainConfig
    kl: KLConfig
    value_clip: float | None
    """How far the critic's values may move in one update; None for no clip."""
    temperature: float
    """Divides the logits before log-probabilities are taken, as in the engine."""


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
        algorithm: Algorithm,
        settings: LearnerSettings,
        world: World,
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.reference = reference
        self._algorithm = algorithm
        self._settings = settings
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
            [r.key.prompt for r in rollouts],
            [r.completion.not_sampled for r in rollouts],
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
        """Credit for every token, by the algorithm; minus the KL penalty if that is part of the reward."""
        kl = self.kl_to_ref(experience) if self._settings.kl.use == "reward" else None
        penalty = None if kl is None else kl_coef * kl.float()
        return self._algorithm.with_advantages(experience, self._settings.algorithm, penalty)

    def kl_to_ref(self, experience: Experience) -> Tensor | None:
        """Estimate `[N, S]` of KL(policy || reference) before the update; None without a reference."""
        if experience.old_logprobs is None or experience.ref_logprobs is None:
            return None
        return kl_estimate(experience.old_logprobs, experience.ref_logprobs, self._settings.kl.estimator)

    def mean_kl_to_ref(self, experience: Experience) -> float | None:
        """Mean of `kl_to_ref` over the response tokens."""
        kl = self.kl_to_ref(experience)
        if kl is None:
            return None
        return float(masked_mean(kl.double(), experience.loss_mask, num_tokens=experience.num_loss_tokens))

    def update(self, experience: Experience, step: int, kl_coef: float, poll: Poll) -> UpdateStats:
        """Train the critic on its mini-batches, then the policy on its own, once per update epoch.

        `experience` has advantages; the step, from 1, orders the mini-batches. `poll` is called before each
        micro-batch; when it raises, the networks are between two states and must not be saved. Raises
        NonFiniteError for a loss or gradient that is not finite, unless such steps are to be skipped.
        """
        train = self._settings.train
        policy_steps: list[PolicyStats | None] = []
        critic_steps: list[CriticStats | None] = []
        num_rows = len(experience.num_tokens)
        train_policy = step > train.freeze_policy_steps
        for epoch in range(train.update_epochs):
            order = step_seed(train.seed, Purpose.MINI_BATCH, step, epoch)
            if self.critic is not None:
                for rows in mini_batches(num_rows, self.critic.num_mini_batches, order):
                    critic_steps.append(self._critic_step(self.critic, experience.rows(rows), poll))
            if train_policy:
                for rows in mini_batches(num_rows, self.policy.num_mini_batches, order):
                    policy_steps.append(self._policy_step(experience.rows(rows), kl_coef, poll))
        self.policy.num_batches += train_policy
        if self.critic is not None:
            self.critic.num_batches += 1
        num_skipped = policy_steps.count(None) + critic_steps.count(None)
        return UpdateStats(_mean(policy_steps), _mean(critic_steps), num_skipped)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's full weights, gathered one after another; a collective of all ranks."""
        for name, tensor in self.policy.weights().items():
            yield name, full_tensor(tensor)

    def offload(self) -> None:
        """Move weights and moments to host memory until `onload`, if train.offload asks for it."""
        self._move_to(torch.device("cpu"))

    def onload(self) -> None:
        """Move them back to the device, to score and to update."""
        self._move_to(self._device)

    def _move_to(self, device: torch.device) -> None:
        if not self._settings.train.offload:
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
        """One optimizer step of the policy on one mini-batch; None if it was skipped."""
        settings, kl = self._settings.algorithm, self._settings.kl
        num_tokens = experience.num_loss_tokens
        sums = torch.zeros(4, dtype=torch.float64)
        model = self.policy.model.train()
        for _, batch in self._micro_batches(experience):
            poll()
            first = _first_response_column(batch)
            mask = batch.loss_mask[:, first:]
            logprobs, logits = token_logprobs(model, batch.token_ids, first, self._settings.temperature)
            old, advantages = _columns(batch.old_logprobs, first), _columns(batch.advantages, first)
            surrogate = self._algorithm.objective(logprobs, old, advantages, mask, settings)
            loss = self._algorithm.aggregate(surrogate.token_losses, mask, num_tokens)
            with torch.set_grad_enabled(settings.entropy_coef > 0):
                entropy = masked_mean(entropy_from_logits(logits), mask, num_tokens=num_tokens)
            loss = loss - settings.entropy_coef * entropy
            if batch.ref_logprobs is not None and kl.use == "loss" and kl_coef > 0:
                ref = _columns(batch.ref_logprobs, first)
                penalty = kl_loss(logprobs, ref, mask, estimator=kl.estimator, num_tokens=num_tokens)
                loss = loss + kl_coef * penalty
            loss.backward()
            clipped, approx_kl = float(surrogate.num_clipped), float(surrogate.approx_kl_sum)
            sums += torch.tensor(
                [float(loss.detach()), float(entropy.detach()), clipped / num_tokens, approx_kl / num_tokens],
                dtype=torch.float64,
            )
        loss_sum, entropy_sum, clipped, approx_kl = self._world.sum(sums).tolist()
        grad_norm = self._apply(self.policy, "policy", loss_sum)
        if grad_norm is None:
            return None
        return PolicyStats(loss_sum, entropy_sum, clipped, approx_kl, grad_norm, self.policy.lr)

    def _critic_step(self, critic: TrainedNetwork, experience: Experience, poll: Poll) -> CriticStats | None:
        """One optimizer step of the critic on one mini-batch; None if it was skipped."""
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
                value_clip=self._settings.value_clip,
                num_tokens=num_tokens,
            )
            loss.backward()
            total += float(loss.detach())
        loss_sum = float(self._world.sum(total))
        grad_norm = self._apply(critic, "critic", loss_sum)
        return None if grad_norm is None else CriticStats(loss_sum, grad_norm, critic.lr)

    def _apply(self, network: TrainedNetwork, name: str, loss: float) -> float | None:
        """Step with the gradients that are there; returns their norm, or None if the step was skipped."""
        grad_norm = network.clip_gradients()
        if math.isfinite(loss) and math.isfinite(grad_norm):
            network.step()
            return grad_norm
        if self._settings.train.on_nonfinite == "skip":
            network.drop_gradients()
            return None
        raise NonFiniteError(
            f"the {name}'s loss is {loss}, the norm of its gradient {grad_norm}",
            hint="nothing of this step was saved, the last checkpoint and the rollouts are untouched; skip "
            f"such optimizer steps with train.on_nonfinite=skip, or lower {name}.lr in a fork",
        )

    def _logprobs(self, model: PreTrainedModel, batch: Experience) -> Tensor:
        """`[B, S]` on the CPU, zero outside of the mask."""
        first = _first_response_column(batch)
        logprobs, _ = token_logprobs(model, batch.token_ids, first, self._settings.temperature)
        full = torch.zeros_like(batch.rollout_logprobs)
        full[:, first:] = torch.where(batch.loss_mask[:, first:], logprobs, 0.0)
        return full.cpu()

    def _micro_batches(self, experience: Experience) -> Iterator[tuple[list[int], Experience]]:
        """Row numbers and rows of each of this rank's micro-batches, the rows on the learner's device.

        A rank with fewer than another one continues with a fully masked row, and no row number: all ranks
        must take part in every pass through a sharded network.
        """
        num_tokens = experience.num_tokens.tolist()
        shares = balance_groups(experience.group.tolist(), num_tokens, self._world.size)
        budget = self._settings.train.micro_batch_tokens
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


_Stats = TypeVar("_Stats", PolicyStats, CriticStats)


def _mean(all_steps: list[_Stats | None]) -> _Stats | None:
    """Mean over the optimizer steps that were not skipped; None if there are none."""
    steps = [step for step in all_steps if step is not None]
    if not steps:
        return None
    names = [field.name for field in fields(steps[0])]
    means = {name: sum(getattr(step, name) for step in steps) / len(steps) for name in names}
    return type(steps[0])(**means)
