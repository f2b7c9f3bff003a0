"""The composition root: from a config and a run directory to the live parts of an attempt."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki import fs
from yaoki.config.schema import Config
from yaoki.errors import UsageError
from yaoki.learner.learner import Learner
from yaoki.learner.optim import TrainedNetwork
from yaoki.learner.shard import shard
from yaoki.learner.world import World
from yaoki.models.critic import build_critic, load_critic
from yaoki.models.policy import build_causal_lm, load_causal_lm, load_tokenizer
from yaoki.ppo.kl_control import AdaptiveKL, FixedKL, KLController
from yaoki.rollout.engine import Poll, RolloutEngine, Sampling
from yaoki.rollout.probe import PROBE_TOKENS
from yaoki.rollout.transformers_engine import TransformersEngine
from yaoki.rollout.vllm_engine import VllmEngine
from yaoki.rollout.vllm_model import VllmOptions
from yaoki.run.base_model import resolve_source
from yaoki.run.console import Console
from yaoki.run.directory import RunDirectory
from yaoki.run.environment import Environment, cpu_name, software
from yaoki.seeding import Purpose, seed


@dataclass(frozen=True, slots=True)
class Models:
    """The networks of a run, whole: those to be sharded in host memory, the engine's on its device."""

    policy: PreTrainedModel
    critic: PreTrainedModel | None
    reference: PreTrainedModel | None
    engine: PreTrainedModel | None
    """None where the engine makes a model of its own."""
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


def environment(config: Config, device: torch.device, world: World) -> Environment:
    """What the bits of this attempt depend on, besides the config's trajectory."""
    return software() | {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "num_devices": torch.cuda.device_count(),
        "num_threads": torch.get_num_threads(),
        "num_workers": world.size,
        # What vLLM samples depends on what happens to be in its batch.
        "deterministic": config.run.deterministic and config.engine.type == "transformers",
    }


def start_models(
    config: Config, directory: RunDirectory, device: torch.device, console: Console, poll: Poll, world: World
) -> Models:
    """The networks at step 0; the first rank stores their architecture in the run directory."""
    if not world.is_first:
        world.loop.wait()
    trust = config.policy.trust_remote_code
    policy_source = resolve_source(config.policy.init_from, config, console, poll)
    tokenizer = load_tokenizer(policy_source, trust_remote_code=trust)
    policy = load_causal_lm(policy_source, trust_remote_code=trust, dropout=config.policy.dropout)
    critic = None
    if config.train.algorithm == "ppo":
        init_from = config.critic.init_from or config.policy.init_from
        critic = load_critic(
            resolve_source(init_from, config, console, poll),
            trust_remote_code=trust,
            dropout=config.critic.dropout,
            head_seed=seed(config.train.seed, Purpose.VALUE_HEAD),
        )
    if world.is_first:
        _store_architecture(directory, policy, critic, tokenizer)
        world.loop.wait()
    return _complete(config, directory, device, policy, critic, tokenizer)


def _store_architecture(
    directory: RunDirectory,
    policy: PreTrainedModel,
    critic: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    policy.config.save_pretrained(directory.model / "policy")
    tokenizer.save_pretrained(directory.model / "policy")
    if critic is not None:
        critic.config.save_pretrained(directory.model / "critic")
    fs.sync_tree(directory.model)


def empty_models(config: Config, directory: RunDirectory, device: torch.device) -> Models:
    """The same networks with weights yet to be restored, from the architecture in the run directory."""
    trust = config.policy.trust_remote_code
    source = str(directory.model / "policy")
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    policy = build_causal_lm(source, trust_remote_code=trust, dropout=config.policy.dropout)
    critic = None
    if config.train.algorithm == "ppo":
        critic = build_critic(
            str(directory.model / "critic"), trust_remote_code=trust, dropout=config.critic.dropout
        )
    return _complete(config, directory, device, policy, critic, tokenizer)


def _complete(
    config: Config,
    directory: RunDirectory,
    device: torch.device,
    policy: PreTrainedModel,
    critic: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Models:
    """Add the copies of the policy: the reference (if there is one) and the engine's."""

    def copy_of_policy() -> PreTrainedModel:
        source = str(directory.model / "policy")
        copy = build_causal_lm(source, trust_remote_code=config.policy.trust_remote_code, dropout=0.0)
        copy.load_state_dict(policy.state_dict())
        copy.eval().requires_grad_(False)
        return copy

    reference = copy_of_policy() if config.kl.needs_reference else None
    engine = None
    if config.engine.type == "transformers":
        engine = copy_of_policy()
        torch.nn.Module.to(engine, device)  # transformers' own `to` is not typed
    return Models(policy, critic, reference, engine, tokenizer)


def build_learner(config: Config, models: Models, world: World, device: torch.device) -> Learner:
    """Networks, each rank its share, with their optimizers."""

    def spread(model: PreTrainedModel) -> PreTrainedModel:
        return shard(model, world, config.train, device)

    policy = TrainedNetwork(spread(models.policy), config.policy)
    critic = None if models.critic is None else TrainedNetwork(spread(models.critic), config.critic)
    reference = None if models.reference is None else spread(models.reference)
    return Learner(policy, critic, reference, config, world)


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
    )
    return VllmEngine(models.policy.config, models.tokenizer, sampling, options)


def build_kl(config: Config) -> KLController:
    """The KL controller that the config names."""
    if config.kl.controller == "adaptive":
        return AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon)
    return FixedKL(config.kl.coef)
