"""The table of algorithms: what its rows compute, which configs they refuse, and what a new row takes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.batches import GRPO, chosen
from tests.support.learners import (
    bits,
    causal_lm,
    close,
    config,
    double_logprobs,
    gradients,
    learner,
    never,
    rollouts,
    same_bits,
)
from yaoki.config.algorithm import AlgorithmConfig
from yaoki.errors import UsageError
from yaoki.rl.algorithm import ALGORITHMS, Algorithm, algorithm_of, ppo_objective
from yaoki.rl.batch import Experience
from yaoki.rl.losses import token_mean

from . import oracle
from .ragged import long_mask, noise, with_gaps

MASKS = {"contiguous": long_mask(), "gaps": with_gaps(long_mask())}


def experience_of(mask: Tensor, *, has_critic: bool) -> Experience:
    """Seven rollouts in three groups; the learner's columns hold noise, and NaN outside of the mask."""
    return Experience(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64),
        num_tokens=torch.full((7,), mask.shape[1]),
        loss_mask=mask,
        rollout_logprobs=noise(mask, 1),
        rewards=torch.tensor([1.0, 0.0, 0.3, -2.0, 1.0, 0.5, 0.0]),
        group=torch.arange(7) % 3,
        old_logprobs=noise(mask, 2),
        values=noise(mask, 3) if has_critic else None,
    )


def importance(experience: Experience, cap: float) -> oracle.Table:
    assert experience.old_logprobs is not None
    old, rollout = experience.old_logprobs, experience.rollout_logprobs
    return oracle.importance_weights(old.tolist(), rollout.tolist(), experience.loss_mask, cap)


def assert_near(found: Tensor | None, expected: oracle.Table) -> None:
    assert found is not None
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-5, atol=2e-6)


def times(one: oracle.Table, other: oracle.Table) -> oracle.Table:
    return [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("is_white", [True, False], ids=["white", "plain"])
@pytest.mark.parametrize("has_penalty", [True, False], ids=["penalty", "no penalty"])
def test_ppo_gives_credit_by_gae(mask: Tensor, cap: float, is_white: bool, has_penalty: bool) -> None:
    settings = AlgorithmConfig(gamma=0.9, gae_lambda=0.8, whiten_advantages=is_white, importance_cap=cap)
    experience = experience_of(mask, has_critic=True)
    penalty = noise(mask, 4) if has_penalty else None
    found = ALGORITHMS["ppo"].with_advantages(experience, settings, penalty)

    assert experience.values is not None
    subtracted = torch.zeros(mask.shape) if penalty is None else penalty
    rewards = oracle.shaped_rewards(experience.rewards.tolist(), mask, subtracted.tolist())
    advantages, returns = oracle.gae(rewards, experience.values.tolist(), mask, 0.9, 0.8)
    if is_white:
        advantages = oracle.whiten(advantages, mask, 1e-8)
    if cap:
        advantages = times(advantages, importance(experience, cap))  # after whitening; not the returns
    assert_near(found.advantages, advantages)
    assert_near(found.returns, returns)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("is_scaled", [True, False], ids=["scaled", "plain"])
def test_grpo_gives_credit_within_the_group(mask: Tensor, cap: float, is_scaled: bool) -> None:
    experience = experience_of(mask, has_critic=False)
    settings = AlgorithmConfig(name="grpo", scale_by_std=is_scaled, importance_cap=cap)
    found = ALGORITHMS["grpo"].with_advantages(experience, settings, None)

    of_row = oracle.group_relative(experience.rewards.tolist(), experience.group.tolist(), is_scaled, 1e-6)
    advantages = oracle.zeros(mask)
    for row, t in oracle.tokens(mask):
        advantages[row][t] = of_row[row]
    if cap:
        advantages = times(advantages, importance(experience, cap))
    assert_near(found.advantages, advantages)
    assert found.returns is None


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_policies_minimise_the_mean_of_the_clipped_surrogate(name: str, mask: Tensor) -> None:
    logprobs, old, advantages = (noise(mask, seed, 0.3) for seed in range(3))
    logprobs.requires_grad_()
    row = ALGORITHMS[name]
    surrogate = row.objective(logprobs, old, advantages, mask, AlgorithmConfig(clip_eps=0.1))
    loss = row.aggregate(surrogate.token_losses, mask, 99)
    loss.backward()

    columns = (column.tolist() for column in (logprobs.detach(), old, advantages))
    expected, num_clipped, approx_kl, gradient = oracle.policy_loss(*columns, mask, 0.1, 99)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert surrogate.num_clipped.item() == num_clipped > 0
    assert surrogate.approx_kl_sum.item() == pytest.approx(approx_kl, rel=1e-5)
    assert_near(logprobs.grad, gradient)


def test_what_each_algorithm_needs() -> None:
    needs = {name: (row.needs_critic, row.needs_groups) for name, row in ALGORITHMS.items()}
    assert needs == {"ppo": (True, False), "grpo": (False, True)}
    for name in needs:
        assert algorithm_of(config(f"algorithm.name={name}")) is ALGORITHMS[name]


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"algorithm.name: there is no algorithm 'gpro'") as caught:
        algorithm_of(config("algorithm.name=gpro"))
    assert caught.value.exit_code == 2
    assert caught.value.hint == "did you mean 'grpo'? known names: grpo, ppo"


@pytest.mark.parametrize(
    ("overrides", "names", "remedy"),
    [
        (
            ("train.group_size=1",),
            ("algorithm.name", "train.group_size"),
            "set train.group_size to 2 or more",
        ),
        (
            ("train.freeze_policy_steps=3",),
            ("algorithm.name", "train.freeze_policy_steps"),
            "set train.freeze_policy_steps=0",
        ),
        (("kl.coef=0.1", "kl.use=reward"), ("algorithm.name", "kl.use"), 'set kl.use="loss"'),
        (("kl.measure=true", "kl.use=reward"), ("algorithm.name", "kl.use"), 'set kl.use="loss"'),
    ],
)
def test_a_wrong_combination_names_the_fields_and_what_to_set(
    overrides: tuple[str, ...], names: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        algorithm_of(config("algorithm.name=grpo", *overrides))
    assert caught.value.exit_code == 2
    for name in names:
        assert name in caught.value.message
    assert caught.value.hint == remedy
    algorithm_of(config("algorithm.name=ppo", *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm.name=grpo", "train.group_size=2", "kl.use=reward"),
        ("algorithm.name=grpo", "kl.coef=0.1"),
        ("kl.coef=0.1", "kl.use=reward"),
    ],
)
def test_a_combination_that_can_work(overrides: tuple[str, ...]) -> None:
    algorithm_of(config(*overrides))


# A new algorithm: one function and one row


def leave_one_out_credit(experience: Experience, _: AlgorithmConfig, penalty: Tensor | None) -> Experience:
    """RLOO: each reward against the mean of the others in its group (Ahmadian et al. 2024)."""
    assert penalty is None
    advantages = torch.zeros(len(experience.rewards))
    for row, group in enumerate(experience.group.tolist()):
        others = experience.group == group
        others[row] = False
        advantages[row] = experience.rewards[row] - experience.rewards[others].mean()
    return replace(experience, advantages=torch.where(experience.loss_mask, advantages[:, None], 0.0))


RLOO = Algorithm(
    needs_critic=False,
    needs_groups=True,
    credit=leave_one_out_credit,
    objective=ppo_objective,
    aggregate=token_mean,
)


def test_a_learner_trains_with_a_row_that_is_not_in_the_table() -> None:
    made = learner(config("algorithm.name=rloo"), algorithm=RLOO)
    experience = made.with_advantages(made.score(rollouts(), never), 0.0)
    before = bits(made.policy)
    with gradients(made.policy) as seen:
        stats = made.update(experience, 1, 0.0, never)
    assert stats.policy is not None
    assert stats.critic is None
    assert not same_bits(bits(made.policy), before)

    # On the policy the ratio is 1: the gradient is that of the mean of -A log pi.
    model = causal_lm(1).double()
    logprobs, _ = double_logprobs(model, experience.token_ids)
    assert experience.advantages is not None
    weighted = (experience.advantages.double() * logprobs)[experience.loss_mask]
    (-weighted.sum() / experience.num_loss_tokens).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    close(seen[0], expected, rtol=1e-3, atol=2e-6)


def test_leaving_one_out_is_grpos_credit_times_n_over_n_minus_1() -> None:
    """Groups of four: what the row's own function gives is what the learner trains on."""
    rloo = learner(config("algorithm.name=rloo"), algorithm=RLOO)
    grpo = learner(config(*GRPO, "algorithm.scale_by_std=false"))
    experience = rloo.score(rollouts(), never)
    found, plain = rloo.with_advantages(experience, 0.0), grpo.with_advantages(experience, 0.0)
    torch.testing.assert_close(
        chosen(found.advantages, found), 4 / 3 * chosen(plain.advantages, plain), rtol=1e-6, atol=1e-6
    )
