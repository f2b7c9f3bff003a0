"""The composition root: from a config and a run directory to the live parts of an attempt."""

import hashlib
import math
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
from yaoki.errors import UsageError
from yaoki.learner.learner import Learner
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import scatter_weights, shard
from yaoki.models.builtin import Example, Pretraining, tiny_base
from yaoki.models.critic import build_critic, load_critic, load_critic_config
from yaoki.models.huggingface import load_config, load_tokenizer
from yaoki.models.meta import materialize, on_meta
from yaoki.models.policy import build_causal_lm, load_causal_lm
from yaoki.ranks.agree import rank0_first, run_on_all
from yaoki.ranks.world import World
from yaoki.rl.kl import AdaptiveKL, FixedKL, KLController
from yaoki.rollout.engine import Poll, RolloutEngine, Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.rollout.engines.vllm_weights import VllmOptions
from yaoki.runs.directory import RunDirectory
from yaoki.runs.environment import Environment, cpu_name, software
from yaoki.seeding import Purpose, seed
from yaoki.train.console import Console
from yaoki.train.weight_sync import PROBE_TOKENS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Models:
    """The networks of a run on this rank's device: of all but the engine's its share."""

    policy: PreTrainedModel
    critic: PreTrainedModel | None
    reference: PreTrainedModel | None
    engine: PreTrainedModel | None
    """Whole, and without weights until some are pushed; None where the engine makes a model of its own."""
    tokenizer: PreTrainedTokenizerBase


def device_type(config: Config) -> str:
    """The kind of device that the config asks for, `cpu` or `cuda`. UsageError if there is none."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device is cuda, but torch sees no CUDA device", hint='set run.device="cpu"')
    return "cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu"


def choose_device(config: Config, world: World) -> torch.device:
    """This rank's device."""
    kind = device_type(config)
    return torch.device(kind, world.local_rank) if kind == "cuda" and world.size > 1 else torch.device(kind)


def require_whole_engines(config: Config, world: World) -> None:
    """UsageError if the ranks cannot share engines as the config asks."""
    if world.size % (shared_by := config.engine.tensor_parallel):
        raise UsageError(
            f"engine.tensor_parallel is {shared_by}, and does not divide the number of workers, {world.size}",
            hint="start with a multiple of it, such as --workers "
            f"{shared_by * (world.size // shared_by + 1)}; or set engine.tensor_parallel=1",
        )


def environment(config: Config, device: torch.device, world: World) -> Environment:
    """What the bits of this attempt depend on, besides the config's trajectory."""
    facts = software() | {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "num_devices": torch.cuda.device_count(),
        "num_threads": torch.get_num_threads(),
        "num_workers": world.size,
        # What vLLM samples depends on what happens to be in its batch.
        "deterministic": config.run.deterministic and config.engine.type == "transformers",
    }
    if config.engine.type == "vllm":
        facts["tensor_parallel"] = config.engine.tensor_parallel
    return facts


def start_models(
    config: Config, directory: RunDirectory, device: torch.device, console: Console, poll: Poll, world: World
) -> Models:
    """The networks at step 0. The first rank alone reads weights, one network at a time, and deals them out.

    It also stores the architecture in the run directory, from which every rank builds.

    Raises what the first rank meets: NothingThereError, UsageError; on the others it becomes YaokiError.
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
        critic_source = source(critic_from) if config.train.algorithm == "ppo" else None
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
    """The networks with weights yet to be filled in or restored, as the run directory describes them.

    Nobody builds a whole network in host memory.
    """
    trust = config.policy.trust_remote_code

    def empty(name: str, build: Callable[..., PreTrainedModel], dropout: float) -> PreTrainedModel:
        folder = str(directory.model / name)
        return on_meta(partial(build, folder, trust_remote_code=trust, dropout=dropout))

    def spread(model: PreTrainedModel) -> PreTrainedModel:
        return shard(model, world, config.train, device)

    critic = reference = engine = None
    policy = spread(empty("policy", build_causal_lm, config.policy.dropout))
    if config.train.algorithm == "ppo":
        critic = spread(empty("critic", build_critic, config.critic.dropout))
    if config.kl.needs_reference:
        reference = spread(empty("policy", build_causal_lm, 0.0).eval().requires_grad_(False))
    if config.engine.type == "transformers":
        engine = materialize(empty("policy", build_causal_lm, 0.0), device)
    tokenizer = load_tokenizer(str(directory.model / "policy"), trust_remote_code=trust)
    return Models(policy, critic, reference, engine, tokenizer)


def build_learner(config: Config, models: Models, world: World) -> Learner:
    """The networks with their optimizers."""
    policy = TrainedNetwork(models.policy, config.policy)
    critic = None if models.critic is None else TrainedNetwork(models.critic, config.critic)
    return Learner(policy, critic, models.reference, config, world)


def build_engine(config: Config, models: Models, device: torch.device) -> RolloutEngine:
    """The engine that the config names."""
    sampling = Sampling(
        config.engine.temperature, config.engine.top_p, config.engine.max_new_tokens, config.engine.stop
    )
    if models.engine is not None:
        return TransformersEngine(models.engine, models.tokenizer, sampling)
    options = VllmOptions(
        precision=config.train.precision,
        max_tokens=max(config.data.max_prompt_tokens + config.engine.max_new_tokens, PROBE_TOKENS + 1),
        max_rows=config.engine.batch_size,
        gpu_memory_utilization=config.engine.gpu_memory_utilization,
        in_place=device.type == "cuda",
        tensor_parallel=config.engine.tensor_parallel,
        timeout_s=math.ceil(config.run.peer_timeout_s),
    )
    return VllmEngine(models.policy.config, models.tokenizer, sampling, options)


def build_kl(config: Config) -> KLController:
    """The KL controller that the config names."""
    if config.kl.controller == "adaptive":
        return AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon)
    return FixedKL(config.kl.coef)


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
        return str(tiny_base(_no_example, BUILTIN_RANDOM, Pretraining(steps=0), _ignore_progress))
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


def _no_example(index: int) -> Example:
    raise AssertionError(f"a random model reads no text, not even example {index}")


def _ignore_progress(done: int, total: int) -> None:
    """There is nothing to show."""
