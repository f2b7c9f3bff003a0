"""Updates: against a float64 oracle, however the batch is cut."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.batches import GRPO, KL_LOSS, SMALL, chosen, off_policy, scored
from tests.support.learners import (
    bits,
    causal_lm,
    close,
    config,
    critic_model,
    double_logprobs,
    gradients,
    learner,
    never,
    rollouts,
    same_bits,
)
from yaoki.rl.batch import Experience


def policy_oracle(
    experience: Experience, settings_kl: float, entropy_coef: float
) -> tuple[dict[str, Tensor], float]:
    """Gradient and loss of the policy in float64, token by token definitions, the whole batch at once."""
    model = causal_lm(1).double()
    logprobs, logits = double_logprobs(model, experience.token_ids)
    mask = experience.loss_mask
    assert experience.old_logprobs is not None
    assert experience.advantages is not None
    ratio = (logprobs - experience.old_logprobs.double()).exp()
    advantages = experience.advantages.double()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    shares = logits.softmax(-1)
    entropy = -(shares * logits.log_softmax(-1)).sum(-1)
    loss = -surrogate - entropy_coef * entropy
    if experience.ref_logprobs is not None:
        difference = logprobs - experience.ref_logprobs.double()
        loss = loss + settings_kl * (torch.exp(-difference) - 1 + difference)
    total = loss[mask].sum() / mask.sum()
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, float(total.detach())


class TestUpdate:
    @pytest.mark.parametrize("micro", ["train.micro_batch_tokens=100000", SMALL])
    @pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
    @pytest.mark.parametrize("kl", [(), KL_LOSS])
    @pytest.mark.parametrize("gaps", [False, True], ids=["contiguous", "gaps"])
    def test_the_policys_gradient(
        self, gaps: bool, micro: str, entropy_coef: float, kl: tuple[str, ...]
    ) -> None:
        made = learner(config(micro, f"algorithm.entropy_coef={entropy_coef}", *kl))
        experience = off_policy(scored(made, gaps=gaps))
        expected, loss = policy_oracle(experience, 0.3, entropy_coef)
        with gradients(made.policy) as seen:
            stats = made.update(experience, 1, 0.3 if kl else 0.0, never)
        assert len(seen) == 1
        close(seen[0], expected, rtol=1e-3, atol=2e-6)
        assert stats.policy is not None
        assert stats.policy.loss == pytest.approx(loss, abs=1e-5)
        norm = torch.stack([grad.square().sum() for grad in expected.values()]).sum().sqrt().item()
        assert stats.policy.grad_norm == pytest.approx(norm, rel=1e-4)
        assert 0.05 < stats.policy.clip_fraction < 0.5

    @pytest.mark.parametrize("micro", ["train.micro_batch_tokens=100000", SMALL])
    @pytest.mark.parametrize("value_clip", [0.0, 0.01])
    @pytest.mark.parametrize("gaps", [False, True], ids=["contiguous", "gaps"])
    def test_the_critics_gradient(self, gaps: bool, micro: str, value_clip: float) -> None:
        made = learner(config(micro, f"critic.value_clip={value_clip}", "critic.num_mini_batches=1"))
        experience = scored(made, gaps=gaps)
        assert experience.values is not None
        shift = 0.02 * torch.randn(experience.values.shape, generator=torch.Generator().manual_seed(1))
        experience = replace(experience, values=experience.values + shift)
        model = critic_model(2).double()
        hidden = model.base_model(input_ids=experience.token_ids).last_hidden_state[:, :-1]
        values = torch.nn.functional.pad((hidden @ model.score.weight[0]), (1, 0))
        mask, old = experience.loss_mask, experience.values.double()
        assert experience.returns is not None
        errors = (values - experience.returns).square()
        if value_clip:
            kept = old + (values - old).clamp(-value_clip, value_clip)
            errors = torch.maximum(errors, (kept - experience.returns).square())
        total = 0.5 * errors[mask].sum() / mask.sum()
        total.backward()
        assert made.critic is not None
        with gradients(made.critic) as seen:
            stats = made.update(experience, 1, 0.0, never)
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        close(seen[0], expected, rtol=1e-3, atol=2e-6)
        assert stats.critic is not None
        assert stats.critic.loss == pytest.approx(float(total.detach()), abs=1e-6)

    @pytest.mark.parametrize(
        "overrides", [(), KL_LOSS, GRPO, (*GRPO, *KL_LOSS, "algorithm.entropy_coef=0.1")]
    )
    def test_one_micro_batch_or_many(self, overrides: tuple[str, ...]) -> None:
        one, many = learner(config(*overrides)), learner(config(*overrides, SMALL))
        experience = off_policy(scored(one))
        one.update(experience, 1, 0.3, never)
        many.update(experience, 1, 0.3, never)
        close(bits(one.policy), bits(many.policy), rtol=1e-3, atol=1e-5)
        if one.critic is not None and many.critic is not None:
            close(bits(one.critic), bits(many.critic), rtol=1e-3, atol=1e-5)

    def test_the_same_update_gives_the_same_bits(self) -> None:
        one, other = learner(config(*KL_LOSS, SMALL)), learner(config(*KL_LOSS, SMALL))
        experience = scored(one)
        assert one.update(experience, 3, 0.3, never) == other.update(experience, 3, 0.3, never)
        assert same_bits(bits(one.policy), bits(other.policy))
        assert same_bits(bits(one.critic), bits(other.critic))

    @pytest.mark.parametrize(
        ("overrides", "policy_steps", "critic_steps"),
        [
            ((), 1, 12),
            (("train.update_epochs=2",), 2, 24),
            (("policy.num_mini_batches=3", "critic.num_mini_batches=5"), 3, 5),
            (("critic.num_mini_batches=100",), 1, 16),
        ],
    )
    def test_number_of_optimizer_steps(
        self, overrides: tuple[str, ...], policy_steps: int, critic_steps: int
    ) -> None:
        made = learner(config(*overrides))
        made.update(scored(made), 1, 0.0, never)
        assert made.critic is not None
        assert made.policy.moments()["step/model.norm.weight"].item() == policy_steps
        assert made.critic.moments()["step/score.weight"].item() == critic_steps
        assert (made.policy.num_batches, made.critic.num_batches) == (1, 1)

    def test_the_critic_goes_first_and_mini_batches_hold_everything_once(self) -> None:
        made = learner(config("critic.num_mini_batches=5", "policy.num_mini_batches=2"))
        assert made.critic is not None
        order: list[str] = []
        rows: list[Experience] = []
        critic_step, policy_step = made._critic_step, made._policy_step
        made._critic_step = lambda c, e, p: (order.append("critic"), rows.append(e), critic_step(c, e, p))[2]
        made._policy_step = lambda e, k, p: (order.append("policy"), rows.append(e), policy_step(e, k, p))[2]
        experience = scored(made)
        made.update(experience, 1, 0.0, never)
        assert order == ["critic"] * 5 + ["policy"] * 2
        for part in (rows[:5], rows[5:]):
            seen = sorted(
                row[: int(n)].tolist() for e in part for row, n in zip(e.token_ids, e.num_tokens, strict=True)
            )
            assert seen == sorted(
                row[: int(n)].tolist()
                for row, n in zip(experience.token_ids, experience.num_tokens, strict=True)
            )

    def test_the_order_belongs_to_step_and_epoch(self) -> None:
        def after(step: int, *overrides: str) -> dict[str, Tensor]:
            made = learner(config(*overrides))
            made.update(scored(made), step, 0.0, never)
            assert made.critic is not None
            return bits(made.critic)

        assert same_bits(after(1), after(1))
        assert not same_bits(after(1), after(2))
        assert not same_bits(after(1), after(1, "train.seed=1"))

    def test_a_frozen_policy_keeps_its_bits(self) -> None:
        made = learner(config("train.freeze_policy_steps=2"))
        assert made.critic is not None
        before, critic = bits(made.policy), bits(made.critic)
        for step in (1, 2):
            stats = made.update(scored(made), step, 0.0, never)
            assert stats.policy is None
            assert stats.critic is not None
        assert same_bits(bits(made.policy), before)
        assert not same_bits(bits(made.critic), critic)
        assert (made.policy.num_batches, made.critic.num_batches) == (0, 2)
        assert made.update(scored(made), 3, 0.0, never).policy is not None
        assert not same_bits(bits(made.policy), before)
        assert (made.policy.num_batches, made.critic.num_batches) == (1, 3)

    def test_kl_as_a_loss_needs_a_coefficient(self) -> None:
        seen = []
        for overrides, coef in ((KL_LOSS, 0.3), (KL_LOSS, 0.0), ((), 0.3)):
            made = learner(config(*overrides))
            experience = scored(made)
            with gradients(made.policy) as found:
                made.update(experience, 1, coef, never)
            seen.append(found[0])
        assert not same_bits(seen[0], seen[1])
        assert same_bits(seen[1], seen[2])

    def test_grpo_has_no_critic(self) -> None:
        made = learner(config(*GRPO))
        before = bits(made.policy)
        stats = made.update(scored(made), 1, 0.0, never)
        assert stats.critic is None
        assert stats.policy is not None
        assert not same_bits(bits(made.policy), before)

    def test_equal_rewards_teach_grpo_nothing(self) -> None:
        made = learner(config(*GRPO))
        flat = [replace(r, verdict=replace(r.verdict, reward=1.0)) for r in rollouts()]
        before = made.policy.weights()["model.norm.weight"].clone()
        stats = made.update(made.with_advantages(made.score(flat, never), 0.0), 1, 0.0, never)
        assert stats.policy is not None
        assert stats.policy.grad_norm == 0.0
        assert torch.equal(made.policy.weights()["model.norm.weight"], before)

    def test_on_policy_numbers(self) -> None:
        made = learner(config())
        experience = scored(made)
        stats = made.update(experience, 1, 0.0, never).policy
        assert stats is not None
        assert stats.clip_fraction == 0.0
        assert stats.approx_kl == pytest.approx(0, abs=1e-9)
        assert stats.lr == 0.01
        _, logits = double_logprobs(causal_lm(1).double(), experience.token_ids)
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)[experience.loss_mask].mean()
        assert stats.entropy == pytest.approx(entropy.item(), abs=1e-5)

    def test_an_update_raises_what_was_rewarded(self) -> None:
        made = learner(config("policy.lr=0.003"))
        experience = scored(made)
        for step in (1, 2, 3):
            made.update(experience, step, 0.0, never)
        after = made.score(rollouts(), never)
        gain = chosen(after.old_logprobs, after) - chosen(experience.old_logprobs, experience)
        assert (gain * chosen(experience.advantages, experience)).mean() > 0

    def test_dropout_is_on_while_training(self) -> None:
        made = [learner(config(), dropout=0.5) for _ in range(3)]
        experience = scored(made[0])
        for number, one in zip((0, 0, 1), made, strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                one.update(experience, 1, 0.0, never)
        assert same_bits(bits(made[0].policy), bits(made[1].policy))
        assert not same_bits(bits(made[0].policy), bits(made[2].policy))


def test_the_reference_becomes_a_copy_of_the_policy() -> None:
    made = learner(config(*KL_LOSS))
    assert made.reference is not None
    made.update(scored(made), 1, 0.0, never)
    made.refresh_reference()
    reference = {name: tensor.clone() for name, tensor in made.reference.state_dict().items()}
    assert same_bits(reference, made.policy.weights())
    made.update(scored(made), 2, 0.0, never)
    assert same_bits(reference, dict(made.reference.state_dict()))
    assert not same_bits(reference, made.policy.weights())
    assert not any(p.requires_grad for p in made.reference.parameters())
    learner(config()).refresh_reference()


def test_weights_for_the_engine_are_all_and_live() -> None:
    made = learner(config())
    pushed = dict(made.weights())
    assert pushed.keys() == made.policy.model.state_dict().keys()
    before = pushed["model.norm.weight"].clone()
    made.update(scored(made), 1, 0.0, never)
    assert not torch.equal(pushed["model.norm.weight"], before)
