"""What a run will take: memory of each worker, checkpoints, journal. Arithmetic on its config, no torch.

Numbers of parameters and sizes of checkpoints are exact. Memory and journal are estimates for the worst case:
prompts have `data.max_prompt_tokens`, and no completion ends before `engine.max_new_tokens`. What CUDA itself
and the gaps between tensors take is not in it. Reads nothing but the config.json of a model.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from yaoki.commands.architecture import Architecture, Shapes, architecture_of
from yaoki.config.schema import Config
from yaoki.errors import UsageError

_WEIGHT_BYTES = 4
"""Weights, gradients and each of AdamW's two moments are float32, whatever is computed in."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
_LOGITS_COPIES = 5
"""float32 tensors of the size of the logits that are alive at once, when the policy's entropy is computed."""
_JOURNAL_BYTES_PER_TOKEN = 7
"""Token, log-probability and text, compressed; measured on completions of about 1,000 tokens."""
_PART_BYTES = 8_000
"""Of a part of the journal beside its rollouts, of which each worker writes one at least."""
_LEAST_ROOM = 64
"""Columns that a slab of the key/value cache has in reserve, at least, when it is made."""
_HEADER_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Network:
    """A network that learns. Exact."""

    source: str
    num_parameters: int
    """Tied weights count once."""


@dataclass(frozen=True, slots=True)
class Memory:
    """On the device of one worker. About.

    The learner's part is there all the time, or, with `train.offload`, not while generating; vLLM's is given
    back while training, the transformers engine's copy of the policy is not.
    """

    weights_bytes: int
    """4 bytes a parameter of policy and critic, divided by the number of workers."""
    moments_bytes: int
    """8 bytes a parameter, divided likewise."""
    reference_bytes: int
    """4 bytes a parameter of the policy, divided likewise; 0 without a reference."""
    engine_weights_bytes: int
    """The engine's own copy of the policy, whole on each worker: 4 bytes a parameter. vLLM's is in what is
    computed in, divided by `engine.tensor_parallel`."""
    cache_bytes: int
    """Keys and values while generating: layers x 2 x completions x columns x width of the key heads x 4, with
    the columns of a slab that grows by half whenever it is full. vLLM's hold what is computed in, and are
    divided like its weights; this is what it can use, it takes what it may."""
    gradients_bytes: int
    """4 bytes a parameter of the network that is being trained, divided by the number of workers."""
    gathered_bytes: int
    """What of that network is whole on each worker for a moment: embeddings, head and two layers, weights and
    gradients, in what is computed in. 0 for one worker in float32, which computes with its weights."""
    activations_bytes: int
    """What the backward pass of one micro-batch needs, see `_activation_bytes`."""

    learner_offloads: bool
    """`train.offload` is set."""
    engine_sleeps: bool
    """The engine is vLLM."""

    @property
    def learner_bytes(self) -> int:
        """Of what is trained, and the reference."""
        return self.weights_bytes + self.moments_bytes + self.reference_bytes

    @property
    def update_bytes(self) -> int:
        """What an update takes beside them."""
        return self.gradients_bytes + self.gathered_bytes + self.activations_bytes

    @property
    def generating_bytes(self) -> int:
        """There while completions are sampled."""
        engine_bytes = self.engine_weights_bytes + self.cache_bytes
        return engine_bytes if self.learner_offloads else engine_bytes + self.learner_bytes

    @property
    def pushing_bytes(self) -> int:
        """There while the engine gets the learner's weights."""
        return self.learner_bytes + self.engine_weights_bytes

    @property
    def updating_bytes(self) -> int:
        """There while training, when there is no cache."""
        training_bytes = (
            self.learner_bytes + self.gradients_bytes + self.gathered_bytes + self.activations_bytes
        )
        return training_bytes if self.engine_sleeps else training_bytes + self.engine_weights_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that is there at once."""
        return max(self.generating_bytes, self.pushing_bytes, self.updating_bytes)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `yaoki plan` says."""

    algorithm: str
    num_workers: int
    policy: Network
    critic: Network | None
    memory: Memory
    start_host_bytes: int
    """What the first worker alone reads into host memory while a fresh run starts, one network at a time: 4
    bytes a parameter of the larger one. On top of all else if it trains on the CPU; nothing on a resume."""
    checkpoint_bytes: int
    """All tensor files of one checkpoint, moments included. Exact for one worker; of several, each writes
    files whose headers, of some kilobytes, are counted as if they were full. state.json and manifest.json are
    small and not counted."""
    checkpoint_s: float
    """Time to write one at the given speed of the disk, which all workers share."""
    num_completions: int
    """Of one step."""
    max_tokens: int
    """Response tokens of one step if no completion ends early: completions x engine.max_new_tokens."""
    max_journal_bytes: int
    """About 7 bytes for each of these tokens."""


def plan_run(config: Config, *, num_workers: int, disk_gb_per_s: float) -> Plan:
    """Everything that can be said of a run from its config.

    Args:
        num_workers: ranks that share the state.
        disk_gb_per_s: what the disk of the checkpoints writes, in 10^9 bytes a second.

    Raises:
        NothingThereError, UsageError: see `architecture_of`; UsageError if the workers cannot share engines.
    """
    if num_workers % config.engine.tensor_parallel:
        raise UsageError(
            f"engine.tensor_parallel, {config.engine.tensor_parallel}, does not divide {num_workers} workers",
            hint="set --workers to a multiple of it",
        )
    from yaoki.rl.algorithm import ALGORITHMS

    policy = architecture_of(config.policy.init_from)
    critic, critic_source = None, config.critic.init_from or config.policy.init_from
    if ALGORITHMS[config.algorithm.name].needs_critic:
        critic = architecture_of(critic_source)
    networks = [policy.policy(), *([] if critic is None else [critic.critic()])]
    checkpoint_bytes = num_workers * sum(map(_header_bytes, _checkpoint_files(config, policy, critic)))
    checkpoint_bytes += sum(map(_data_bytes, _checkpoint_files(config, policy, critic)))
    num_completions = config.train.num_prompts * config.train.group_size
    max_tokens = num_completions * config.engine.max_new_tokens
    return Plan(
        algorithm=config.algorithm.name,
        num_workers=num_workers,
        policy=Network(config.policy.init_from, _num_elements(policy.policy())),
        critic=None if critic is None else Network(critic_source, _num_elements(critic.critic())),
        memory=_memory(config, policy, critic, num_workers),
        start_host_bytes=max(_data_bytes(shapes) for shapes in networks),
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_s=checkpoint_bytes / (disk_gb_per_s * 1e9),
        num_completions=num_completions,
        max_tokens=max_tokens,
        max_journal_bytes=_JOURNAL_BYTES_PER_TOKEN * max_tokens + _PART_BYTES * num_workers,
    )


def _memory(config: Config, policy: Architecture, critic: Architecture | None, num_workers: int) -> Memory:
    """Policy and critic are trained one after the other, so of their updates the larger one counts."""
    policy_weights = _data_bytes(policy.policy())
    critic_weights = 0 if critic is None else _data_bytes(critic.critic())
    updates = [_update_bytes(config, policy, policy.policy(), num_workers, is_policy=True)]
    if critic is not None:
        updates.append(_update_bytes(config, critic, critic.critic(), num_workers, is_policy=False))
    gradients, gathered, activations = max(updates, key=sum)
    return Memory(
        weights_bytes=_share(policy_weights + critic_weights, num_workers),
        moments_bytes=_share(len(_MOMENTS) * (policy_weights + critic_weights), num_workers),
        reference_bytes=_share(policy_weights, num_workers) if config.kl.needs_reference else 0,
        engine_weights_bytes=_engine_weights_bytes(config, policy),
        cache_bytes=_cache_bytes(config, policy),
        gradients_bytes=gradients,
        gathered_bytes=gathered,
        activations_bytes=activations,
        learner_offloads=config.train.offload,
        engine_sleeps=config.engine.traits.sleeps,
    )


def _update_bytes(
    config: Config, network: Architecture, weights: Shapes, num_workers: int, *, is_policy: bool
) -> tuple[int, int, int]:
    """Gradients, gathered weights and activations of one network's update."""
    activations = _activation_bytes(config, network, is_policy=is_policy)
    compute_bytes = _COMPUTE_BYTES[config.train.precision]
    gathered = 0
    if num_workers > 1 or config.train.precision != "float32":
        in_layer = _num_elements(network.layer())
        outside = _num_elements(weights) - network.num_layers * in_layer
        gathered = 2 * compute_bytes * (outside + 2 * in_layer)
    return _share(_data_bytes(weights), num_workers), gathered, activations


def _activation_bytes(config: Config, network: Architecture, *, is_policy: bool) -> int:
    """What one micro-batch of T tokens keeps for its backward pass.

    A layer keeps, for each token, H numbers six times (its two norms: what comes in, normalised, what goes
    out), its queries and what attention gives, keys and values, and four times the MLP's inner width I. In
    bfloat16 what comes into a norm is kept in float32. With activation checkpointing it is H numbers a layer,
    and all of this for one layer. Attention keeps no S x S tensor. The policy's logits are T x V float32
    numbers, five times. T is `train.micro_batch_tokens`, or the longest row if that is more, or the whole
    mini-batch if that is less.
    """
    longest_row = config.data.max_prompt_tokens + config.engine.max_new_tokens
    num_completions = config.train.num_prompts * config.train.group_size
    num_rows = -(-num_completions // (config.policy if is_policy else config.critic).num_mini_batches)
    num_tokens = max(longest_row, min(config.train.micro_batch_tokens, num_rows * longest_row))
    compute_bytes = _COMPUTE_BYTES[config.train.precision]
    hidden = network.hidden_size
    numbers = 4 * hidden + 2 * network.query_size + 2 * network.key_size + 4 * network.intermediate_size
    layer = compute_bytes * numbers + _WEIGHT_BYTES * 2 * hidden
    kept = network.num_layers * layer
    if config.train.activation_checkpointing:
        kept = network.num_layers * compute_bytes * hidden + layer
    logits = _LOGITS_COPIES * _WEIGHT_BYTES * network.vocab_size if is_policy else 0
    return num_tokens * (kept + logits)


def _engine_weights_bytes(config: Config, policy: Architecture) -> int:
    if config.engine.traits.is_float32:
        return _data_bytes(policy.policy())
    whole_bytes = _COMPUTE_BYTES[config.train.precision] * _num_elements(policy.policy())
    return _share(whole_bytes, config.engine.tensor_parallel)


def _cache_bytes(config: Config, policy: Architecture) -> int:
    """Keys and values of the rollouts that grow at once when their last token is sampled."""
    num_rows = min(config.engine.batch_size, config.train.num_prompts * config.train.group_size)
    if config.engine.traits.is_float32:
        columns = slab_columns(config.data.max_prompt_tokens, config.engine.max_new_tokens - 1)
        return policy.num_layers * 2 * num_rows * columns * policy.key_size * _WEIGHT_BYTES
    columns = config.data.max_prompt_tokens + config.engine.max_new_tokens
    heads = max(policy.num_kv_heads // config.engine.tensor_parallel, 1)
    row_bytes = (
        policy.num_layers * 2 * columns * heads * policy.head_dim * _COMPUTE_BYTES[config.train.precision]
    )
    return num_rows * row_bytes


def slab_columns(num_first: int, num_more: int) -> int:
    """Columns of a slab that was made for `num_first` and to which `num_more` were appended one by one."""
    needed = num_first + num_more
    columns = num_first + max(_LEAST_ROOM, num_first // 2)
    while columns < needed:
        full = columns + 1
        columns = full + max(_LEAST_ROOM, full // 2)
    return columns


def _checkpoint_files(config: Config, policy: Architecture, critic: Architecture | None) -> list[Shapes]:
    """The tensors in each file of a checkpoint."""
    files = []
    for weights in [policy.policy(), *([] if critic is None else [critic.critic()])]:
        moments: Shapes = {
            f"{name}/{weight}": shape for name in _MOMENTS for weight, shape in weights.items()
        }
        files += [weights, moments | {f"step/{weight}": () for weight in weights}]
    return [*files, policy.policy()] if config.kl.needs_reference else files


def _header_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of a safetensors file whose tensors are all float32 and in the order of their names, padded."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + _WEIGHT_BYTES * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    num_bytes = 8 + len(json.dumps(entries, separators=(",", ":")))
    return -(-num_bytes // _HEADER_ALIGNMENT_BYTES) * _HEADER_ALIGNMENT_BYTES


def _data_bytes(shapes: Shapes) -> int:
    return _WEIGHT_BYTES * _num_elements(shapes)


def _num_elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _share(num_bytes: int, num_workers: int) -> int:
    return -(-num_bytes // num_workers)
