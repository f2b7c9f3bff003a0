"""The networks of a run: from their first weights, or empty for a restore, to this rank's shard of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki import fs
from yaoki.config.schema import Config
from yaoki.data.generated.families import TaskFamily, family, training_task
from yaoki.data.templates import load_template
from yaoki.learner.learner import Learner, LearnerSettings
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import scatter_weights, shard
from yaoki.models.builtin import Example, Pretraining, tiny_base
from yaoki.models.critic import build_critic, load_critic, load_critic_config
from yaoki.models.huggingface import load_config, load_tokenizer
from yaoki.models.meta import on_meta
from yaoki.models.policy import build_causal_lm, load_causal_lm
from yaoki.ranks.agree import rank0_first, run_on_all
from yaoki.ranks.world import World
from yaoki.rl.algorithm import ALGORITHMS, algorithm_of
from yaoki.rl.kl import AdaptiveKL, KLController
from yaoki.runs.directory import RunDirectory
from yaoki.seeding import Purpose, seed
from yaoki.train.console import Console
from yaoki.types import Poll

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Models:
    """The networks that the learner holds, this rank's shards, on its device."""

    policy: PreTrainedModel
    critic: PreTrainedModel | None
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase


def start_models(
    config: Config, directory: RunDirectory, device: torch.device, console: Console, poll: Poll, world: World
) -> Models:
    """The networks at step 0. Rank 0 alone reads weights, one network at a time, and scatters them.

    It also stores the architecture in the run directory, from which every rank builds.

    Raises what rank 0 raises: NothingThereError, UsageError; on other ranks it becomes YaokiError.
    """
    policy_from, critic_from = config.policy.init_from, config.critic.init_from or config.policy.init_from
    trust = config.policy.trust_remote_code

    def on_first(work: Callable[[], T]) -> T | None:
        return run_on_all(world.loop, partial(rank0_first, world, work))

    def source(init_from: str) -> str:
        return resolve_source(init_from, config, console, poll)

    def load_policy() -> PreTrainedModel:
        return load_causal_lm(source(policy_from), trust_remote_code=trust, dropout=config.policy.dropout)

    def load_first_critic() -> PreTrainedModel:
        head_seed = seed(config.train.seed, Purpose.VALUE_HEAD)
        return load_critic(
            source(critic_from), trust_remote_code=trust, dropout=config.critic.dropout, head_seed=head_seed
        )

    def store() -> None:
        critic_source = source(critic_from) if ALGORITHMS[config.algorithm.name].needs_critic else None
        _store_architecture(config, directory, source(policy_from), critic_source)

    on_first(store)
    models = empty_models(config, directory, device, world)
    scatter_weights(models.policy, on_first(load_policy), world)
    if models.critic is not None:
        scatter_weights(models.critic, on_first(load_first_critic), world)
    if models.reference is not None:
        models.reference.load_state_dict(models.policy.state_dict())  # rows to rows, on every rank
    return models


def _store_architecture(
    config: Config, directory: RunDirectory, policy_source: str, critic_source: str | None
) -> None:
    trust = config.policy.trust_remote_code
    folder = directory.model / "policy"
    load_tokenizer(policy_source, trust_remote_code=trust).save_pretrained(folder)
    load_config(policy_source, trust_remote_code=trust, dropout=config.policy.dropout).save_pretrained(folder)
    if critic_source is not None:
        critic = load_critic_config(critic_source, trust_remote_code=trust, dropout=config.critic.dropout)
        critic.save_pretrained(directory.model / "critic")
    fs.sync_tree(directory.model)


def empty_models(config: Config, directory: RunDirectory, device: torch.device, world: World) -> Models:
    """The networks without weights, as the run directory describes them.

    Built on the meta device, so that no rank materialises a full model.
    """
    trust = config.policy.trust_remote_code

    def empty(name: str, build: Callable[..., PreTrainedModel], dropout: float) -> PreTrainedModel:
        folder = str(directory.model / name)
        return on_meta(partial(build, folder, trust_remote_code=trust, dropout=dropout))

    def spread(model: PreTrainedModel) -> PreTrainedModel:
        return shard(model, world, config.train, device)

    critic = reference = None
    policy = spread(empty("policy", build_causal_lm, config.policy.dropout))
    if ALGORITHMS[config.algorithm.name].needs_critic:
        critic = spread(empty("critic", build_critic, config.critic.dropout))
    if config.kl.needs_reference:
        reference = spread(empty("policy", build_causal_lm, 0.0).eval().requires_grad_(False))
    tokenizer = load_tokenizer(str(directory.model / "policy"), trust_remote_code=trust)
    return Models(policy, critic, reference, tokenizer)


def build_learner(config: Config, models: Models, world: World) -> Learner:
    """The networks with their optimizers, and the algorithm that trains them."""
    policy = TrainedNetwork(models.policy, config.policy)
    critic = None if models.critic is None else TrainedNetwork(models.critic, config.critic)
    settings = LearnerSettings(
        algorithm=config.algorithm,
        train=config.train,
        kl=config.kl,
        value_clip=config.critic.value_clip or None,
        temperature=config.engine.temperature,
    )
    return Learner(policy, critic, models.reference, algorithm_of(config), settings, world)


def build_kl(config: Config) -> KLController:
    """The KL controller that the config names."""
    if config.kl.controller == "adaptive":
        return AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon)
    return KLController(config.kl.coef)


BUILTIN_TINY = "builtin:tiny"
BUILTIN_RANDOM = "builtin:tiny-random"

_MISTAKES_PER_100 = 48
"""Share of worked solutions with a mistake: a base model knows the form better than the facts."""
_NUM_DIGESTED = 256
_BASE_SEED = 0
"""Every run starts from the same base model, whatever its own seed."""


def resolve_source(init_from: str, config: Config, console: Console, poll: Poll) -> str:
    """Folder or hub name of the model to start from; makes the built-in base if it is asked for.

    Raises what `poll` raises; then nothing is kept of a base that was being made.
    """
    if init_from == BUILTIN_RANDOM:
        random = Pretraining(steps=0)  # reads no example
        return str(tiny_base(lambda _: ("", ""), BUILTIN_RANDOM, random, lambda *_: None))
    if init_from != BUILTIN_TINY:
        return init_from
    plan = Pretraining()
    examples = worked_examples(family(config.data.family), config.data.template)
    digest = _examples_digest(examples)
    with console.work("pre-training the built-in base model (once, then cached)") as advance:

        def on_progress(done: int, total: int) -> None:
            advance(done, total)
            poll()

        return str(tiny_base(examples, digest, plan, on_progress))


def worked_examples(tasks: TaskFamily, template_spec: str) -> Callable[[int], Example]:
    """Prompt and worked solution number i of an endless row, some with mistakes; none is held out."""
    template = load_template(template_spec)

    def example(index: int) -> Example:
        task = training_task(tasks, _BASE_SEED, 0, index)
        slip = seed(_BASE_SEED, Purpose.BASE_MODEL, index)
        mistake_seed = slip if slip % 100 < _MISTAKES_PER_100 else None
        return template.render(task), tasks.worked_solution(task, mistake_seed)

    return example


def _examples_digest(examples: Callable[[int], Example]) -> str:
    text = "\0".join("\0".join(examples(index)) for index in range(_NUM_DIGESTED))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
