"""One micro-batch or many, in any order of rows: the same loss and the same gradient up to rounding."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from yaoki.rl.advantages import gae, masked_moments, shaped_rewards, whiten
from yaoki.rl.batch import Experience, micro_batches, mini_batches, pad_rollouts
from yaoki.rl.losses import (
    clipped_surrogate,
    entropy_from_logits,
    kl_loss,
    masked_mean,
    token_mean,
    value_loss,
)

VOCABULARY = 11
NUM_ROWS = 12


class TinyActorCritic(nn.Module):
    """A model that looks at the previous token only: log-probabilities, entropies and values `[N, S]`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden = nn.Parameter(torch.randn(VOCABULARY, 6, generator=generator))
        self.head = nn.Parameter(torch.randn(6, VOCABULARY, generator=generator))
        self.value_head = nn.Parameter(torch.randn(6, generator=generator))

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        previous = torch.tanh(self.hidden[token_ids.roll(1, dims=1)])
        logits = previous @ self.head
        logprobs = logits.log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
        return logprobs, entropy_from_logits(logits), previous @ self.value_head


def scored_experience() -> Experience:
    generator = torch.Generator().manual_seed(1)
    lengths = [1 + row % 5 for row in range(NUM_ROWS)]
    responses = [torch.randint(VOCABULARY, (2 * n,), generator=generator).tolist() for n in lengths]
    prompts = [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    logprobs = [[-1.0] * len(response) for response in responses]
    scores = [float(row % 3 == 0) for row in range(NUM_ROWS)]
    experience = pad_rollouts(prompts, responses, logprobs, scores, [row // 4 for row in range(NUM_ROWS)])
    with torch.no_grad():
        # Ratios near 1 with a spread, so that some of them are clipped.
        current, _, _ = TinyActorCritic(seed=4)(experience.token_ids)
        other, _, values = TinyActorCritic(seed=2)(experience.token_ids)
        old_logprobs = current + 0.02 * other
        ref_logprobs, _, _ = TinyActorCritic(seed=3)(experience.token_ids)
    mask = experience.loss_mask
    rewards = shaped_rewards(experience.rewards, mask, None)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    advantages = whiten(advantages, mask, masked_moments(advantages, mask))
    return replace(
        experience,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        advantages=advantages,
        returns=returns,
    )


@dataclass
class Outcome:
    """What one mini-batch gives, summed over its micro-batches."""

    gradients: list[Tensor]
    sums: Tensor
    """Loss, clipped tokens, approx_kl sum and mean entropy."""


def run(experience: Experience, batches: list[list[int]]) -> Outcome:
    model = TinyActorCritic(seed=4)
    sums = torch.zeros(4, dtype=torch.float64)
    num_tokens = experience.num_loss_tokens
    for rows in batches:
        part = experience.rows(rows)
        assert part.old_logprobs is not None
        assert part.ref_logprobs is not None
        assert part.values is not None
        assert part.advantages is not None
        assert part.returns is not None
        mask = part.loss_mask
        logprobs, entropy, values = model(part.token_ids)
        policy = clipped_surrogate(logprobs, part.old_logprobs, part.advantages, mask, clip_eps=0.05)
        critic = value_loss(values, part.values, part.returns, mask, value_clip=0.2, num_tokens=num_tokens)
        kl = kl_loss(logprobs, part.ref_logprobs, mask, estimator="k2", num_tokens=num_tokens)
        mean_entropy = masked_mean(entropy, mask, num_tokens=num_tokens)
        loss = token_mean(policy.token_losses, mask, num_tokens) + critic + 0.1 * kl - 0.01 * mean_entropy
        loss.backward()
        numbers = (loss, policy.num_clipped, policy.approx_kl_sum, mean_entropy)
        sums += torch.stack([number.detach().double() for number in numbers])
    return Outcome([p.grad for p in model.parameters() if p.grad is not None], sums)


def assert_same(one: Outcome, other: Outcome) -> None:
    torch.testing.assert_close(one.sums, other.sums, rtol=1e-5, atol=1e-6)
    for a, b in zip(one.gradients, other.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_test_is_worth_something() -> None:
    outcome = run(scored_experience(), [list(range(NUM_ROWS))])
    assert len(outcome.gradients) == 3
    assert all(gradient.abs().max() > 1e-3 for gradient in outcome.gradients)
    assert 0 < outcome.sums[1] < scored_experience().num_loss_tokens


@pytest.mark.parametrize("num_parts", [2, 4, NUM_ROWS])
def test_micro_batches_add_up_to_the_mini_batch(num_parts: int) -> None:
    experience = scored_experience()
    whole = run(experience, [list(range(NUM_ROWS))])
    assert_same(whole, run(experience, mini_batches(NUM_ROWS, num_parts, seed_value=3)))


@pytest.mark.parametrize("token_budget", [1, 30, 60])
def test_the_token_budget_does_not_change_the_answer(token_budget: int) -> None:
    experience = scored_experience()
    batches = micro_batches(experience.num_tokens.tolist(), token_budget)
    assert len(batches) > 1
    assert_same(run(experience, [list(range(NUM_ROWS))]), run(experience, batches))


def test_the_order_of_the_rows_does_not_matter() -> None:
    experience = scored_experience()
    (forward,) = mini_batches(NUM_ROWS, 1, seed_value=0)
    assert_same(run(experience, [forward]), run(experience, [forward[::-1]]))


def test_the_same_batches_give_the_same_bits() -> None:
    experience = scored_experience()
    batches = mini_batches(NUM_ROWS, 4, seed_value=3)
    one, other = run(experience, batches), run(experience, batches)
    assert torch.equal(one.sums, other.sums)
    assert all(torch.equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=True))
