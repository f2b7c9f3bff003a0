"""Small networks, handmade rollouts, and a learner of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from yaoki.config.load import load_config
from yaoki.config.schema import Config
from yaoki.learner.learner import Learner, LearnerSettings
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import shard
from yaoki.models.critic import init_value_head
from yaoki.ranks.world import World, alone
from yaoki.rl.algorithm import Algorithm, algorithm_of
from yaoki.types import Completion, FinishReason, Prompt, Rollout, RolloutKey, Task, Verdict, VerdictReason

VOCABULARY = 40


def config(*overrides: str) -> Config:
    """No warm-up, and an optimizer whose steps are nearly proportional to the gradient."""
    base = ["data.family=arithmetic"]
    for network in ("policy", "critic"):
        base += [f"{network}.{setting}" for setting in ("warmup_steps=0", "eps=0.01", "lr=0.01")]
    return load_config(None, [*base, *overrides])


def architecture(vocabulary: int = VOCABULARY, dropout: float = 0.0) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        attention_dropout=dropout,
    )


def causal_lm(seed: int, *, vocabulary: int = VOCABULARY, dropout: float = 0.0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(architecture(vocabulary, dropout))


def critic_model(seed: int) -> PreTrainedModel:
    shape = architecture()
    shape.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForSequenceClassification(shape)
    init_value_head(model, seed)
    return model


def learner(
    settings: Config,
    *,
    dropout: float = 0.0,
    reference_seed: int = 3,
    world: World | None = None,
    algorithm: Algorithm | None = None,
) -> Learner:
    """Always the same networks; a critic if the algorithm needs one, a reference if the config does.

    The algorithm is the one that the config names, if not given.
    """
    world = world or alone()
    algorithm = algorithm or algorithm_of(settings)

    def spread(model: PreTrainedModel) -> PreTrainedModel:
        return shard(model, world, settings.train, torch.device("cpu"))

    policy = TrainedNetwork(spread(causal_lm(1, dropout=dropout)), settings.policy)
    critic = None
    if algorithm.needs_critic:
        critic = TrainedNetwork(spread(critic_model(2)), settings.critic)
    reference = None
    if settings.kl.needs_reference:
        reference = spread(causal_lm(reference_seed).eval().requires_grad_(False))
    sections = LearnerSettings(
        algorithm=settings.algorithm,
        train=settings.train,
        kl=settings.kl,
        value_clip=settings.critic.value_clip or None,
        temperature=settings.engine.temperature,
    )
    return Learner(policy, critic, reference, algorithm, sections, world)


def rollout(
    place: tuple[int, int],
    prompt: Sequence[int],
    response: Sequence[int],
    reward: float,
    not_sampled: Sequence[int] = (),
) -> Rollout:
    """The rollout of (prompt index, sample), with log-probabilities that nothing depends on."""
    task = Task(f"u{place[0]}", "problem", "answer", "test")
    completion = Completion(
        tuple(response), (-1.0,) * len(response), "text", FinishReason.STOP, tuple(not_sampled)
    )
    verdict = Verdict(reward, VerdictReason.CORRECT if reward else VerdictReason.WRONG)
    return Rollout(RolloutKey(1, *place), 0, Prompt(task, "text", tuple(prompt)), completion, verdict)


def rollouts(num_prompts: int = 4, group_size: int = 4, *, gaps: bool = False) -> list[Rollout]:
    """Ragged; groups of mixed rewards. With `gaps`, every third token of a response was not sampled."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    made = []
    for index in range(num_prompts):
        prompt = ids(2 + index % 4)
        for sample in range(group_size):
            reward = float((index + sample) % 3 == 0)
            response = ids(1 + (5 * index + 3 * sample) % 9)
            not_sampled = range(1, len(response), 3) if gaps else ()
            made.append(rollout((index, sample), prompt, response, reward, not_sampled))
    return made


@contextmanager
def gradients(network: TrainedNetwork) -> Iterator[list[dict[str, Tensor]]]:
    """The gradients of each optimizer step, as they are before clipping."""
    seen: list[dict[str, Tensor]] = []
    original = network.clip_gradients

    def clip_gradients() -> float:
        seen.append(
            {name: p.grad.clone() for name, p in network.model.named_parameters() if p.grad is not None}
        )
        return original()

    network.clip_gradients = clip_gradients  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del network.clip_gradients  # type: ignore[method-assign]


def bits(network: TrainedNetwork) -> dict[str, Tensor]:
    """A copy of everything that learns."""
    return {name: tensor.clone() for name, tensor in (network.weights() | network.moments()).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name].double(), other[name].double(), rtol=rtol, atol=atol)


def double_logprobs(model: PreTrainedModel, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[N, S]` (column 0 zero) and the logits `[N, S, V]` that they come from."""
    logits = model(input_ids=token_ids).logits
    chosen = logits.log_softmax(-1)[:, :-1].gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    first = torch.zeros_like(chosen[:, :1])
    shifted = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
    return torch.cat([first, chosen], dim=1), shifted


def never() -> None:
    """Nobody asks to stop."""
