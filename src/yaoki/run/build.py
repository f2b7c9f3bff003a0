"""The composition root: from a config and a run directory to the live parts of an attempt."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki import fs
from yaoki.config.schema import Config
from yaoki.errors import UsageError
from yaoki.learner.learner import Learner
from yaoki.learner.optim import TrainedNetwork
from yaoki.models.critic import build_critic, load_critic
from yaoki.models.policy import build_causal_lm, load_causal_lm, load_tokenizer
from yaoki.ppo.kl_control import AdaptiveKL, FixedKL, KLController
from yaoki.rollout.engine import Poll, RolloutEngine, Sampling
from yaoki.rollout.transformers_engine import TransformersEngine
from yaoki.run.base_model import resolve_source
from yaoki.run.console import Console
from yaoki.run.directory import RunDirectory
from yaoki.run.environment import Environment, cpu_name, software
from yaoki.seeding import Purpose, seed


@dataclass(frozen=True, slots=True)
class Models:
    """The networks of a run, on their device."""

    policy: PreTrainedModel
    critic: PreTrainedModel | None
    reference: PreTrainedModel | None
    engine: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def choose_device(config: Config) -> torch.device:
    """The device that the config asks for. UsageError if there is none."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device is cuda, but torch sees no CUDA device", hint='set run.device="cpu"')
    wants_cuda = config.run.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wants_cuda else "cpu")


def environment(config: Config, device: torch.device) -> Environment:
    """What the bits of this attempt depend on, besides the config's trajectory."""
    return software() | {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "num_devices": torch.cuda.device_count(),
        "num_threads": torch.get_num_threads(),
        "deterministic": config.run.deterministic,
    }


def start_models(
    config: Config, directory: RunDirectory, device: torch.device, console: Console, poll: Poll
) -> Models:
    """The networks at step 0, and their architecture stored in the run directory."""
    trust = config.policy.trust_remote_code
    policy_source = resolve_source(config.policy.init_from, config, console, poll)
    tokenizer = load_tokenizer(policy_source, trust_remote_code=trust)
    policy = load_causal_lm(policy_source, trust_remote_code=trust, dropout=config.policy.dropout)
    policy.config.save_pretrained(directory.model / "policy")
    tokenizer.save_pretrained(directory.model / "policy")
    critic = None
    if config.train.algorithm == "ppo":
        init_from = config.critic.init_from or config.policy.init_from
        critic = load_critic(
            resolve_source(init_from, config, console, poll),
            trust_remote_code=trust,
            dropout=config.critic.dropout,
            head_seed=seed(config.train.seed, Purpose.VALUE_HEAD),
        )
        critic.config.save_pretrained(directory.model / "critic")
    fs.sync_tree(directory.model)
    return _complete(config, directory, device, policy, critic, tokenizer)


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
        return _moved(copy, device)

    _moved(policy, device)
    if critic is not None:
        _moved(critic, device)
    reference = copy_of_policy() if config.kl.needs_reference else None
    return Models(policy, critic, reference, copy_of_policy(), tokenizer)


def _moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    torch.nn.Module.to(model, device)  # transformers' own `to` is not typed
    return model


def build_learner(config: Config, models: Models) -> Learner:
    """Networks with their optimizers."""
    critic = None if models.critic is None else TrainedNetwork(models.critic, config.critic)
    return Learner(TrainedNetwork(models.policy, config.policy), critic, models.reference, config)


def build_engine(config: Config, models: Models) -> RolloutEngine:
    """The engine that the config names."""
    sampling = Sampling(
        config.engine.temperature, config.engine.top_p, config.engine.max_new_tokens, config.engine.stop
    )
    engines = {"transformers": TransformersEngine}
    return engines[config.engine.type](models.engine, models.tokenizer, sampling)


def build_kl(config: Config) -> KLController:
    """The KL controller that the config names."""
    if config.kl.controller == "adaptive":
        return AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon)
    return FixedKL(config.kl.coef)
