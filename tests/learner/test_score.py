"""Scoring and credit: against the definitions, however the batch is cut."""

from dataclasses import replace

import pytest
import torch

from tests.support.batches import GRPO, KL_LOSS, KL_REWARD, chosen, scored
from tests.support.learners import (
    causal_lm,
    config,
    critic_model,
    double_logprobs,
    gradients,
    learner,
    never,
    rollout,
    rollouts,
    same_bits,
)
from yaoki.models.builtin import tiny_tokenizer
from yaoki.models.critic import token_values
from yaoki.rollout.engine import Request, Sampling
from yaoki.rollout.engines.transformers import TransformersEngine


class TestScore:
    @pytest.mark.parametrize("gaps", [False, True], ids=["contiguous", "gaps"])
    def test_against_the_definition(self, gaps: bool) -> None:
        made = learner(config(*KL_LOSS))
        experience = made.score(rollouts(gaps=gaps), never)
        mask = experience.loss_mask
        for column, model in (
            (experience.old_logprobs, causal_lm(1)),
            (experience.ref_logprobs, causal_lm(3)),
        ):
            expected, _ = double_logprobs(model.double().eval(), experience.token_ids)
            assert column is not None
            assert column.dtype == torch.float32
            torch.testing.assert_close(chosen(column, experience), expected.detach()[mask], rtol=0, atol=1e-5)
            assert (column[~mask] == 0).all()
        assert experience.values is not None
        expected = token_values(critic_model(2).double().eval(), experience.token_ids).detach()
        torch.testing.assert_close(
            chosen(experience.values, experience), expected[mask].double(), rtol=0, atol=1e-5
        )

    def test_temperature(self) -> None:
        experience = learner(config("engine.temperature=0.5")).score(rollouts(), never)
        model = causal_lm(1).double().eval()
        logits = 2.0 * model(input_ids=experience.token_ids).logits
        expected = logits.log_softmax(-1)[:, :-1].gather(-1, experience.token_ids[:, 1:, None]).squeeze(-1)
        mask = experience.loss_mask[:, 1:]
        assert experience.old_logprobs is not None
        found = experience.old_logprobs[:, 1:][mask].double()
        torch.testing.assert_close(found, expected.detach()[mask], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("budget", [1, 20, 45])
    def test_however_it_is_cut(self, budget: int) -> None:
        whole = learner(config(*KL_LOSS)).score(rollouts(), never)
        cut = learner(config(*KL_LOSS, f"train.micro_batch_tokens={budget}")).score(rollouts(), never)
        for name in ("old_logprobs", "ref_logprobs", "values"):
            found, expected = chosen(getattr(cut, name), cut), chosen(getattr(whole, name), whole)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_dropout_is_off_and_nothing_is_learnt(self) -> None:
        made = learner(config(), dropout=0.5)
        made.policy.model.train()
        before = torch.get_rng_state()
        one, other = made.score(rollouts(), never), made.score(rollouts(), never)
        assert one.old_logprobs is not None
        assert other.old_logprobs is not None
        assert torch.equal(one.old_logprobs, other.old_logprobs)
        assert not one.old_logprobs.requires_grad
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_reference_and_critic(self) -> None:
        experience = learner(config(*GRPO)).score(rollouts(), never)
        assert experience.values is None
        assert experience.ref_logprobs is None

    def test_agrees_with_the_engine(self) -> None:
        """The tokens that were sampled are the tokens that are scored."""
        tokenizer = tiny_tokenizer()
        made = learner(config())
        made.policy.model = causal_lm(1, vocabulary=len(tokenizer))
        made.critic = None
        engine = TransformersEngine(
            causal_lm(9, vocabulary=len(tokenizer)), tokenizer, Sampling(1.0, 1.0, 12, ("a", "1", "<"))
        )
        engine.load_weights(made.policy.model.state_dict().items(), 0)
        prompts = [tokenizer(text)["input_ids"] for text in ("1+1=", "23-4+5=<think>", "x") for _ in range(4)]
        completions = engine.generate(
            [Request(tuple(prompt), 100 + place) for place, prompt in enumerate(prompts)], lambda: None
        )
        sampled = [
            replace(rollout((place, 0), prompt, completion.token_ids, 0.0), completion=completion)
            for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        experience = made.score(sampled, never)
        gap = chosen(experience.old_logprobs, experience) - chosen(experience.rollout_logprobs, experience)
        assert gap.abs().max() <= 1e-4
        assert experience.num_loss_tokens == sum(len(c.token_ids) for c in completions)


class TestAdvantages:
    def test_reward_minus_value_when_nothing_is_discounted(self) -> None:
        experience = scored(learner(config("algorithm.whiten_advantages=false")))
        rewards = experience.rewards[:, None].expand_as(experience.loss_mask)
        torch.testing.assert_close(chosen(experience.returns, experience), chosen(rewards, experience))
        torch.testing.assert_close(
            chosen(experience.advantages, experience),
            chosen(rewards, experience) - chosen(experience.values, experience),
            rtol=0,
            atol=1e-6,
        )

    def test_whitened_over_the_whole_batch(self) -> None:
        advantages = chosen(scored(learner(config())).advantages, scored(learner(config())))
        assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
        assert advantages.var(unbiased=False).item() == pytest.approx(1, abs=1e-5)

    def test_gamma_and_lambda(self) -> None:
        plain = scored(learner(config("algorithm.whiten_advantages=false")))
        for change in ("algorithm.gamma=0.5", "algorithm.gae_lambda=0.5"):
            changed = scored(learner(config("algorithm.whiten_advantages=false", change)))
            difference = chosen(plain.advantages, plain) - chosen(changed.advantages, changed)
            assert difference.abs().max() > 0.01

    def test_kl_as_a_reward_is_in_the_advantages_alone(self) -> None:
        made = learner(config(*KL_REWARD, "algorithm.whiten_advantages=false"))
        plain, penalised = scored(made), scored(made, kl_coef=0.3)
        penalty = made.kl_to_ref(penalised)
        assert penalty is not None
        inside = torch.where(penalised.loss_mask, penalty.double(), 0.0)
        to_come = inside.flip(1).cumsum(1).flip(1)
        torch.testing.assert_close(
            chosen(plain.returns, plain) - chosen(penalised.returns, penalised),
            0.3 * chosen(to_come, plain),
            rtol=1e-4,
            atol=1e-5,
        )
        before = [learner(config(*KL_REWARD)) for _ in range(2)]
        with gradients(before[0].policy) as one, gradients(before[1].policy) as other:
            before[0].update(penalised, 1, 0.3, never)
            before[1].update(penalised, 1, 0.0, never)
        assert same_bits(one[0], other[0])

    def test_kl_as_a_loss_is_not_in_the_advantages(self) -> None:
        made = learner(config(*KL_LOSS))
        assert torch.equal(
            chosen(scored(made).advantages, scored(made)), chosen(scored(made, 0.3).advantages, scored(made))
        )

    def test_grpo_compares_within_the_group(self) -> None:
        experience = scored(learner(config(*GRPO, "algorithm.scale_by_std=false")))
        assert experience.returns is None
        for group in range(4):
            rows = (experience.group == group).nonzero()[:, 0].tolist()
            mean = experience.rewards[rows].mean()
            for row in rows:
                assert experience.advantages is not None
                found = experience.advantages[row][experience.loss_mask[row]]
                assert found == pytest.approx((experience.rewards[row] - mean).item(), abs=1e-6)
        scaled = scored(learner(config(*GRPO)))
        assert scaled.advantages is not None
        assert scaled.advantages.abs().max() > experience.advantages.abs().max()

    def test_kl_to_ref(self) -> None:
        made = learner(config("kl.measure=true"), reference_seed=1)
        assert made.kl_to_ref(made.score(rollouts(), never)).abs().max() < 1e-6
        assert learner(config()).kl_to_ref(learner(config()).score(rollouts(), never)) is None
        other = learner(config("kl.measure=true", "kl.estimator=k3"))
        found = other.kl_to_ref(other.score(rollouts(), never))
        assert found is not None
        assert found.min() >= 0
        assert found.max() > 0.01


@pytest.mark.parametrize("kind", [(), GRPO], ids=["ppo", "grpo"])
def test_advantages_can_be_weighted_for_an_engine_that_computes_otherwise(kind: tuple[str, ...]) -> None:
    """The handmade rollouts' log-probabilities are -1 everywhere: far from the learner's."""
    plain = scored(learner(config(*kind)))
    weighted = scored(learner(config(*kind, "algorithm.importance_cap=2")))
    assert plain.old_logprobs is not None
    ratios = (plain.old_logprobs - plain.rollout_logprobs).exp().clamp(max=2.0)
    assert float(ratios[plain.loss_mask].std()) > 0.01
    expected = chosen(plain.advantages, plain) * ratios[plain.loss_mask].double()
    torch.testing.assert_close(chosen(weighted.advantages, plain), expected, rtol=1e-6, atol=1e-9)
    if not kind:
        assert torch.equal(chosen(weighted.returns, plain), chosen(plain.returns, plain))
