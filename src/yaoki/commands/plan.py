"""`yaoki plan`: the memory of each worker, checkpoints and journal of a run, from its config alone.

Parameters and checkpoint sizes are exact: the networks are built on the meta device. Memory and journal are
estimates for the worst case: prompts of `data.max_prompt_tokens`, completions of `engine.max_new_tokens`.
CUDA's own memory and fragmentation are not counted. Nothing is downloaded: the only file read is config.json.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from yaoki.checkpoint.io.tensor_file import StoredTensor, header, in_file_order
from yaoki.commands.footprint import Memory, Network, Plan
from yaoki.config.schema import Config
from yaoki.errors import NothingThereError, UsageError
from yaoki.models.critic import build_critic
from yaoki.models.huggingface import load_config
from yaoki.models.meta import decoder_layers, on_meta
from yaoki.models.policy import build_causal_lm
from yaoki.rl.algorithm import algorithm_of
from yaoki.rollout.engines.kv_cache import slab_capacity

_WEIGHT_BYTES = 4
"""Weights, gradients and each of AdamW's two moments are float32, whatever `train.precision` is."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
_LOGITS_COPIES = 5
"""float32 tensors of the size of the logits that are alive at once while the policy's entropy is computed."""
_JOURNAL_BYTES_PER_TOKEN = 7
"""Token, log-probability and text, compressed; measured on completions of about 1,000 tokens."""
_SEGMENT_BYTES = 8_000
"""A journal segment without its rollouts; each worker writes at least one a step."""

_KNOWN = {
    "builtin:tiny": "builtin-tiny",
    "builtin:tiny-random": "builtin-tiny",
    **{f"Qwen/Qwen2.5-{size}": f"Qwen2.5-{size}" for size in ("0.5B", "1.5B", "7B", "32B")},
}
"""Model name -> folder in `known_models/` with its config.json; the numbers are those on the hub."""


def plan_run(config: Config, *, num_workers: int, disk_gb_per_s: float) -> Plan:
    """All figures of a run that its config determines.

    Args:
        num_workers: ranks that share the state.
        disk_gb_per_s: write bandwidth of the checkpoints' disk, in 10^9 bytes a second.

    Raises:
        NothingThereError: there is no usable config.json for a network.
        UsageError: there is no such algorithm, the memory of such an architecture cannot be estimated, or
            `engine.tensor_parallel` does not divide the workers.
    """
    if num_workers % config.engine.tensor_parallel:
        raise UsageError(
            f"engine.tensor_parallel, {config.engine.tensor_parallel}, does not divide {num_workers} workers",
            hint="set --workers to a multiple of it",
        )
    algorithm = algorithm_of(config)
    policy = _build(config.policy.init_from, build_causal_lm)
    critic = None
    if algorithm.needs_critic:
        critic = _build(config.critic.init_from or config.policy.init_from, build_critic)
    networks = [policy, *([] if critic is None else [critic])]
    files = _checkpoint_files(config, networks)
    checkpoint_bytes = sum(num_workers * len(header(file)) + sum(t.num_bytes for t in file) for file in files)
    num_completions = config.train.num_prompts * config.train.group_size
    max_tokens = num_completions * config.engine.max_new_tokens
    return Plan(
        algorithm=config.algorithm.name,
        num_workers=num_workers,
        policy=Network(policy.source, policy.num_parameters),
        critic=None if critic is None else Network(critic.source, critic.num_parameters),
        memory=_memory(config, policy, critic, num_workers),
        start_host_bytes=max(network.num_bytes for network in networks),
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_s=checkpoint_bytes / (disk_gb_per_s * 1e9),
        num_completions=num_completions,
        max_tokens=max_tokens,
        max_journal_bytes=_JOURNAL_BYTES_PER_TOKEN * max_tokens + _SEGMENT_BYTES * num_workers,
    )


@dataclass(frozen=True, slots=True)
class _Dimensions:
    """The sizes of a decoder that its activations and its key/value cache depend on."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class _MetaNetwork:
    """A network built on the meta device."""

    source: str
    tensors: list[StoredTensor]
    """Its parameters, each tied one once."""
    layer_sizes: list[int]
    """Parameters of each layer."""
    dimensions: _Dimensions

    @property
    def num_parameters(self) -> int:
        return self.num_bytes // _WEIGHT_BYTES

    @property
    def num_bytes(self) -> int:
        """Size of the weights in float32."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def _build(source: str, build: Callable[..., PreTrainedModel]) -> _MetaNetwork:
    folder = _folder_of(source)
    dimensions = _dimensions(source, load_config(folder, trust_remote_code=False, dropout=0.0))
    try:
        model = on_meta(partial(build, folder, trust_remote_code=False, dropout=0.0))
    except ValueError as error:
        raise UsageError(
            f"the architecture of {source!r} cannot be built: {error}",
            hint="name a causal language model that transformers knows",
        ) from error
    tensors = [StoredTensor(name, p.dtype, tuple(p.shape)) for name, p in model.named_parameters()]
    layer_sizes = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
    return _MetaNetwork(source, tensors, layer_sizes, dimensions)


def _folder_of(source: str) -> str:
    """The folder with the model's config.json: `source` itself or, for a known name, one of this package."""
    if (Path(source) / "config.json").exists():
        return source
    if source not in _KNOWN:
        raise NothingThereError(
            f"the architecture of {source!r} is not known here, and nothing is downloaded for a plan",
            hint="name a folder that holds the model's config.json (the weights are not needed), "
            f"such as policy.init_from=FOLDER, or one of {', '.join(_KNOWN)}",
        )
    return str(Path(__file__).with_name("known_models") / _KNOWN[source])


def _dimensions(source: str, config: PreTrainedConfig) -> _Dimensions:
    text = config.get_text_config()

    def size(name: str, default: int | None = None) -> int:
        value = getattr(text, name, None)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise UsageError(
                f"memory cannot be estimated for {source!r}: a model of type {config.model_type!r} whose "
                f"{name} is {value!r}",
                hint=f"a config.json needs a {name} of at least 1; architectures without it have no plan",
            )
        return value

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    return _Dimensions(
        num_layers=size("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=size("num_key_value_heads", num_heads),
        head_dim=size("head_dim", hidden_size // num_heads),
        intermediate_size=size("intermediate_size"),
        vocab_size=size("vocab_size"),
    )


def _memory(config: Config, policy: _MetaNetwork, critic: _MetaNetwork | None, num_workers: int) -> Memory:
    """Policy and critic are trained one after the other, so the larger update counts."""
    networks = [policy, *([] if critic is None else [critic])]
    weights = sum(network.num_bytes for network in networks)
    updates = [
        _update_bytes(config, network, num_workers, is_policy=network is policy) for network in networks
    ]
    gradients, gathered, activations = max(updates, key=sum)
    return Memory(
        weights_bytes=_shard_bytes(weights, num_workers),
        moments_bytes=_shard_bytes(len(_MOMENTS) * weights, num_workers),
        reference_bytes=_shard_bytes(policy.num_bytes, num_workers) if config.kl.needs_reference else 0,
        engine_weights_bytes=_engine_weights_bytes(config, policy),
        cache_bytes=_cache_bytes(config, policy.dimensions),
        gradients_bytes=gradients,
        gathered_bytes=gathered,
        activations_bytes=activations,
        learner_offloads=config.train.offload,
        engine_sleeps=config.engine.traits.sleeps,
    )


def _update_bytes(
    config: Config, network: _MetaNetwork, num_workers: int, *, is_policy: bool
) -> tuple[int, int, int]:
    """Gradients, gathered weights and activations of one network's update."""
    activations = _activation_bytes(config, network.dimensions, is_policy=is_policy)
    gathered = 0
    if num_workers > 1 or config.train.precision != "float32":
        outside = network.num_parameters - sum(network.layer_sizes)
        two_layers = 2 * max(network.layer_sizes, default=0)
        gathered = 2 * _COMPUTE_BYTES[config.train.precision] * (outside + two_layers)
    return _shard_bytes(network.num_bytes, num_workers), gathered, activations


def _activation_bytes(config: Config, sizes: _Dimensions, *, is_policy: bool) -> int:
    """What one micro-batch of T tokens keeps for its backward pass.

    A layer keeps, per token, six times H numbers (for its two norms: input, normalised, output), queries and
    attention output, keys and values, and four times the MLP's width I. In bfloat16 the norms' inputs are
    kept in float32. With activation checkpointing it is H numbers a layer, and all of the above for one
    layer. Attention keeps no S x S tensor. The policy's logits are T x V float32 numbers, five times. T is
    `train.micro_batch_tokens`, or the longest row if that is more, or the whole mini-batch if that is less.
    In a mixture of experts, one expert a token is counted.
    """
    longest_row = config.data.max_prompt_tokens + config.engine.max_new_tokens
    num_completions = config.train.num_prompts * config.train.group_size
    num_rows = -(-num_completions // (config.policy if is_policy else config.critic).num_mini_batches)
    num_tokens = max(longest_row, min(config.train.micro_batch_tokens, num_rows * longest_row))
    compute_bytes = _COMPUTE_BYTES[config.train.precision]
    hidden = sizes.hidden_size
    numbers = 4 * hidden + 2 * sizes.query_size + 2 * sizes.key_size + 4 * sizes.intermediate_size
    layer = compute_bytes * numbers + _WEIGHT_BYTES * 2 * hidden
    kept = sizes.num_layers * layer
    if config.train.activation_checkpointing:
        kept = sizes.num_layers * compute_bytes * hidden + layer
    logits = _LOGITS_COPIES * _WEIGHT_BYTES * sizes.vocab_size if is_policy else 0
    return num_tokens * (kept + logits)


def _engine_weights_bytes(config: Config, policy: _MetaNetwork) -> int:
    if config.engine.traits.is_float32:
        return policy.num_bytes
    unsharded = _COMPUTE_BYTES[config.train.precision] * policy.num_parameters
    return _shard_bytes(unsharded, config.engine.tensor_parallel)


def _cache_bytes(config: Config, sizes: _Dimensions) -> int:
    """Keys and values of one engine batch when its last token is sampled."""
    num_rows = min(config.engine.batch_size, config.train.num_prompts * config.train.group_size)
    if config.engine.traits.is_float32:
        columns = slab_columns(config.data.max_prompt_tokens, config.engine.max_new_tokens - 1)
        return sizes.num_layers * 2 * num_rows * columns * sizes.key_size * _WEIGHT_BYTES
    columns = config.data.max_prompt_tokens + config.engine.max_new_tokens
    heads = max(sizes.num_kv_heads // config.engine.tensor_parallel, 1)
    column_bytes = sizes.num_layers * 2 * heads * sizes.head_dim * _COMPUTE_BYTES[config.train.precision]
    return num_rows * columns * column_bytes


def slab_columns(num_first: int, num_more: int) -> int:
    """Columns of a slab made for `num_first` after `num_more` were appended one by one."""
    columns = slab_capacity(num_first)
    while columns < num_first + num_more:
        columns = slab_capacity(columns + 1)
    return columns


def _checkpoint_files(config: Config, networks: list[_MetaNetwork]) -> list[list[StoredTensor]]:
    """The tensors in each file of a checkpoint, in their order: parameters and moments, and the reference."""
    files = []
    for network in networks:
        moments = [
            StoredTensor(f"{moment}/{tensor.name}", tensor.dtype, () if moment == "step" else tensor.shape)
            for tensor in network.tensors
            for moment in (*_MOMENTS, "step")
        ]
        files += [network.tensors, moments]
    if config.kl.needs_reference:
        files.append(networks[0].tensors)
    return [in_file_order(file) for file in files]


def _shard_bytes(num_bytes: int, num_workers: int) -> int:
    return -(-num_bytes // num_workers)
