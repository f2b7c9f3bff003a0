"""Builds the engine that the config names; a new type of engine is one more function here and a row in its
table."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from transformers import PreTrainedTokenizerBase

from yaoki.config.schema import Config
from yaoki.journal.journal import NullJournal, RolloutJournal
from yaoki.models.huggingface import load_config
from yaoki.models.meta import materialize, on_meta
from yaoki.models.policy import build_causal_lm
from yaoki.ranks.world import World
from yaoki.rewards.pool import VerifierPool
from yaoki.rollout.collect import Collector
from yaoki.rollout.engine import RolloutEngine, Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.rollout.engines.vllm_weights import VllmOptions
from yaoki.train.weight_sync import PROBE_TOKENS
from yaoki.types import Poll

Builder = Callable[[Config, str, PreTrainedTokenizerBase, Sampling, torch.device], RolloutEngine]
"""(config, model folder, tokenizer, sampling, device) -> an engine without weights."""


def build_engine(
    config: Config, folder: str, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> RolloutEngine:
    """The engine on this rank's device, for the architecture in `folder`; it has no weights yet."""
    engine = config.engine
    sampling = Sampling(engine.temperature, engine.top_p, engine.max_new_tokens, engine.stop)
    return _BUILDERS[engine.type](config, folder, tokenizer, sampling, device)


def _transformers(
    config: Config,
    folder: str,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    device: torch.device,
) -> RolloutEngine:
    trust = config.policy.trust_remote_code
    model = on_meta(partial(build_causal_lm, folder, trust_remote_code=trust, dropout=0.0))
    return TransformersEngine(materialize(model, device), tokenizer, sampling)


def _vllm(
    config: Config,
    folder: str,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    device: torch.device,
) -> RolloutEngine:
    options = VllmOptions(
        precision=config.train.precision,
        max_tokens=max(config.data.max_prompt_tokens + config.engine.max_new_tokens, PROBE_TOKENS + 1),
        max_rows=config.engine.batch_size,
        gpu_memory_utilization=config.engine.gpu_memory_utilization,
        in_place=device.type == "cuda",
        tensor_parallel=config.engine.tensor_parallel,
        timeout_s=math.ceil(config.run.peer_timeout_s),
    )
    trust = config.policy.trust_remote_code
    architecture = load_config(folder, trust_remote_code=trust, dropout=config.policy.dropout)
    return VllmEngine(architecture, tokenizer, sampling, options)


_BUILDERS: Mapping[str, Builder] = MappingProxyType({"transformers": _transformers, "vllm": _vllm})


def build_collector(
    config: Config,
    engine: RolloutEngine,
    verifier: VerifierPool,
    journal: RolloutJournal | NullJournal,
    world: World,
    poll: Poll,
) -> Collector:
    """Samples with `engine` and judges with `verifier`, as the config says."""
    return Collector(
        engine=engine,
        verifier=verifier,
        journal=journal,
        world=world,
        ranks_per_engine=config.engine.tensor_parallel if world.size > 1 else 1,
        run_seed=config.train.seed,
        group_size=config.train.group_size,
        num_eval_samples=config.eval.num_samples,
        batch_size=config.engine.batch_size,
        poll=poll,
    )
