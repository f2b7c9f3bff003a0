"""Episodes of several turns: tokens that the policy did not sample are context, nothing is learned from them.

No engine makes such episodes yet; journal, exchange between ranks, scoring and update keep the gaps.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.batches import GRPO, KL_LOSS, SMALL
from tests.support.learners import VOCABULARY, config, learner, never, same_bits
from tests.support.ranks import on_ranks
from yaoki.config.schema import Config
from yaoki.journal.journal import RolloutJournal
from yaoki.journal.segments import JournalIdentity
from yaoki.learner.learner import Learner
from yaoki.learner.shard import full_tensor
from yaoki.ranks.world import World, alone
from yaoki.rewards.pool import VerifierPool
from yaoki.rl.batch import Experience
from yaoki.rollout.engine import Request
from yaoki.rollout.engines.scripted import ScriptedEngine
from yaoki.train.engine import build_collector
from yaoki.train.state import Progress
from yaoki.types import Completion, FinishReason, Prompt, Rollout, Task

PROMPTS = [Prompt(Task(f"u{n}", f"p{n}", str(n), "test"), "text", tuple(range(3, 5 + n))) for n in range(4)]
KINDS: dict[str, tuple[str, ...]] = {
    "ppo": (SMALL, "train.group_size=4", "algorithm.importance_cap=2"),
    "grpo": (SMALL, *GRPO, *KL_LOSS),
}


def settings(kind: str) -> Config:
    return config("data.verifier=tests.support.judge:judge_by_hash", "engine.batch_size=3", *KINDS[kind])


def two_turns(request: Request) -> Completion:
    """A turn of the policy, an environment's answer, another turn, and sometimes a last answer."""
    generator = torch.Generator().manual_seed(request.seed % 2**63)
    first, answer, second, last = torch.randint(1, 4, (4,), generator=generator).tolist()
    num_tokens = first + answer + second + last % 2
    ids = torch.randint(0, VOCABULARY, (num_tokens,), generator=generator).tolist()
    gaps = (*range(first, first + answer), *range(first + answer + second, num_tokens))
    logprobs = tuple(0.0 if place in gaps else -1.0 for place in range(num_tokens))
    return Completion(tuple(ids), logprobs, " ".join(map(str, ids)), FinishReason.STOP, gaps)


def nothing(_: Request) -> Completion:
    raise AssertionError("all is in the journal")


def collect(
    engine: ScriptedEngine, config: Config, folder: Path, attempt: int, world: World
) -> list[Rollout]:
    """The rollouts of step 1; what the journal in `folder` holds is not sampled."""
    engine.load_weights([], 0)
    identity = JournalIdentity("run", "digest", attempt, rank=world.rank)
    with (
        VerifierPool(config.data.verifier, 1, 60.0) as verifier,
        RolloutJournal(folder, identity, flush_seconds=0, flush_rollouts=1, num_ranks=world.size) as journal,
    ):
        collector = build_collector(config, engine, verifier, journal, world, never)
        journal.open_step(1, 0, PROMPTS, world.loop.wait)
        rollouts = collector.training(PROMPTS, 1, lambda *_: None)
        journal.sync()
        world.loop.wait()
    return rollouts


def trained_on(made: Learner, experience: Experience) -> dict[str, torch.Tensor]:
    """All weights after one update."""
    made.update(experience, 1, 0.3, never)
    found = {f"policy/{name}": full_tensor(t).clone() for name, t in made.policy.weights().items()}
    if made.critic is not None:
        found |= {f"critic/{name}": full_tensor(t).clone() for name, t in made.critic.weights().items()}
    return found


def experience_of(made: Learner, rollouts: Sequence[Rollout]) -> Experience:
    return made.with_advantages(made.score(rollouts, never), 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_go_through_journal_and_exchange_to_the_update_of_two_ranks(kind: str, tmp_path: Path) -> None:
    def step(world: World, folder: Path) -> Any:
        config = settings(kind)
        sampled = collect(ScriptedEngine(two_turns), config, folder, 1, world)
        found = collect(ScriptedEngine(nothing), config, folder, 2, world)
        made = learner(config, world=world)
        return sampled, found, trained_on(made, experience_of(made, found))

    expected, _, weights = step(alone(), tmp_path / "alone")
    assert len(expected) == 16
    assert all(rollout.completion.not_sampled for rollout in expected)
    assert len({rollout.verdict.reward for rollout in expected}) == 2
    for sampled, found, other in on_ranks(2, tmp_path, lambda world: step(world, tmp_path / "two")):
        assert sampled == expected
        assert found == expected
        assert other.keys() == weights.keys()
        for name in weights:
            torch.testing.assert_close(other[name], weights[name], rtol=0, atol=2e-5)


def rollouts_of(kind: str, folder: Path) -> list[Rollout]:
    return collect(ScriptedEngine(two_turns), settings(kind), folder, 1, alone())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_gap_reaches_the_update(kind: str, tmp_path: Path) -> None:
    """With NaN in every column of a gap the weights have the same bits; without gaps they have others."""
    rollouts = rollouts_of(kind, tmp_path)
    made = [learner(settings(kind)) for _ in range(3)]
    experience = experience_of(made[0], rollouts)
    for row, rollout in enumerate(rollouts):
        start = len(rollout.prompt.token_ids)
        sampled = [
            t for t in range(len(rollout.completion.token_ids)) if t not in rollout.completion.not_sampled
        ]
        assert experience.loss_mask[row].nonzero()[:, 0].tolist() == [start + t for t in sampled]
    assert experience.num_loss_tokens == sum(rollout.completion.num_sampled for rollout in rollouts)

    columns = {field.name: getattr(experience, field.name) for field in fields(experience)}
    spoilt = {
        name: torch.where(experience.loss_mask, column, torch.nan)
        for name, column in columns.items()
        if column is not None and column.shape == experience.loss_mask.shape and column.is_floating_point()
    }
    assert len(spoilt) >= 4
    expected = trained_on(made[0], experience)
    assert same_bits(trained_on(made[1], replace(experience, **spoilt)), expected)

    all_sampled = [replace(r, completion=replace(r.completion, not_sampled=())) for r in rollouts]
    assert not same_bits(trained_on(made[2], experience_of(made[2], all_sampled)), expected)


def test_only_sampled_tokens_are_counted(tmp_path: Path) -> None:
    rollouts = rollouts_of("grpo", tmp_path)
    made = learner(settings("grpo"))
    stats = made.update(experience_of(made, rollouts), 1, 0.0, never)
    progress = Progress()
    progress.advance(PROMPTS, rollouts, stats, "history")
    assert progress.num_tokens == sum(rollout.completion.num_sampled for rollout in rollouts)
    assert progress.num_tokens < sum(len(rollout.completion.token_ids) for rollout in rollouts)
