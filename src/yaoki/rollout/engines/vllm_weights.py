"""vLLM's LLM and its weight updates; the only file that imports vLLM.

On a CPU the engine is rebuilt from a folder for every push, because vLLM's CPU kernels keep packed copies of
the weights, which an update in place does not reach. On a GPU the weights are updated in place by vLLM's
interface for weight transfer, with a backend of our own that takes tensors of this process. Experimental: the
latter was run on a CPU, with the packing removed, and not yet on a GPU.
"""

import copy
import functools
import gc
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from yaoki.errors import UsageError, YaokiError
from yaoki.rollout.engine import Sampling

Weights = Iterator[tuple[str, Tensor]]
"""Named as in the model's checkpoint, each once."""

_CPU_BLOCK_TOKENS = 128
"""Tokens per block of the KV cache."""
_CPU_CACHE_BYTES = 2**29
"""Largest KV cache, unless one completion needs more; vLLM allocates it at every start."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Options of vLLM besides model and sampling."""

    precision: str
    """dtype of weights, cache and computation: float32 or bfloat16."""
    max_tokens: int
    """Largest number of tokens of a prompt and its completion."""
    max_rows: int
    """Completions that are sampled at the same time."""
    gpu_memory_utilization: float
    """Share of the device's memory for weights, cache and all else; for updates in place."""
    in_place: bool
    """Update weights in place (on a GPU), or rebuild the engine for every push (on a CPU)."""
    tensor_parallel: int = 1
    """Neighbouring ranks that share one engine; divides the number of ranks."""
    timeout_s: int = 1800
    """Timeout for an unresponsive rank among those that share an engine."""


class VllmModel(Protocol):
    """vLLM's LLM with a way to update its weights."""

    llm: Any
    """None before the first push, and while its memory is freed."""

    def push(self, weights: Weights, policy_version: int) -> None:
        """Load all weights, and acknowledge their version."""
        ...

    def take_cache(self) -> None:
        """Allocate the KV cache. Not part of a push, so that the learner can be offloaded in between."""
        ...

    def sleep(self) -> None:
        """Free memory; drop the weights."""
        ...

    def wake(self) -> None:
        """Allocate the memory that a push needs."""
        ...


def new_model(
    config: PreTrainedConfig, architecture: str, sampling: Sampling, options: VllmOptions
) -> VllmModel:
    """An engine without weights. UsageError for what vLLM would report late or unclearly."""
    try:
        library()
    except ImportError as error:
        raise UsageError(
            f"engine.type is vllm, but vLLM cannot be imported: {error}",
            hint="docs/engines.md says how to install it; engine.type=transformers needs nothing more",
        ) from error
    longest = getattr(config, "max_position_embeddings", options.max_tokens)
    if options.max_tokens > longest:
        raise UsageError(
            f"prompt and completion may have {options.max_tokens} tokens, the model at most {longest}",
            hint="lower engine.max_new_tokens or data.max_prompt_tokens",
        )
    require_even_slices(config, options.tensor_parallel)
    named = copy.deepcopy(config)
    named.architectures = [architecture]
    return (_UpdatedInPlace if options.in_place else _Rebuilt)(named, sampling, options)


def require_even_slices(config: PreTrainedConfig, num_slices: int) -> None:
    """UsageError unless vLLM can split the model into `num_slices`."""
    num_heads = getattr(config, "num_attention_heads", 0)
    num_key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    inner_size = getattr(config, "intermediate_size", None) or 0
    are_keys_even = num_key_heads % num_slices == 0 or num_slices % num_key_heads == 0
    if num_heads % num_slices or inner_size % num_slices or not are_keys_even:
        raise UsageError(
            f"{num_slices} workers cannot share the model's {num_heads} attention heads, {num_key_heads} key "
            f"heads and {inner_size} inner units evenly",
            hint="engine.tensor_parallel must divide heads and inner units, and divide the key heads or be a "
            "multiple of them",
        )


def library() -> Any:
    """vLLM, imported at the first call, when it reads its settings from the environment."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the learner computes on the same cores
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    import vllm.config  # type: ignore[import-not-found]
    import vllm.sampling_params  # type: ignore[import-not-found]

    return vllm


class _Rebuilt:
    """Updates weights by rebuilding the engine; while it sleeps, there is none."""

    def __init__(self, config: PreTrainedConfig, sampling: Sampling, options: VllmOptions) -> None:
        self.llm: Any = None
        self._config = config
        self._arguments = _arguments(sampling, options) | {
            "load_format": "safetensors",
            "enforce_eager": True,  # compiling would take longer than all else
            "kv_cache_memory_bytes": _cache_bytes(config, options),
        }
        if _has_other_ranks():
            self._arguments["distributed_executor_backend"] = _executor()

    def push(self, weights: Weights, policy_version: int) -> None:
        whole = {name: tensor.contiguous() for name, tensor in weights}
        self.sleep()
        with tempfile.TemporaryDirectory(prefix="yaoki-vllm-") as folder:
            save_file(whole, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            self.llm = _start(self._config, folder, self._arguments)
        # Its finalizer would destroy the process groups, which are the learner's too.
        self.llm.llm_engine.engine_core._finalizer.detach()
        self.llm.update_weight_version(str(policy_version))

    def take_cache(self) -> None:
        """No-op: the engine was built with it."""

    def sleep(self) -> None:
        if self.llm is None:
            return
        self.llm.llm_engine.model_executor.shutdown()
        self.llm = None
        gc.unfreeze()  # it froze all objects when it started
        gc.collect()

    def wake(self) -> None:
        """No-op: the next push builds the engine."""


class _UpdatedInPlace:
    """Keeps the engine and updates its weights by vLLM's interface for weight transfer."""

    def __init__(self, config: PreTrainedConfig, sampling: Sampling, options: VllmOptions) -> None:
        self.llm: Any = None
        self._config = config
        self._arguments = _arguments(sampling, options) | {
            "load_format": "dummy",
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "enable_sleep_mode": torch.cuda.is_available(),
            "weight_transfer_config": library().config.WeightTransferConfig(backend=_transfer()),
        }
        if _has_other_ranks():
            self._arguments["distributed_executor_backend"] = "external_launcher"
        self._has_cache = True

    def push(self, weights: Weights, policy_version: int) -> None:
        if self.llm is None:
            with tempfile.TemporaryDirectory(prefix="yaoki-vllm-") as folder:
                self.llm = _start(self._config, folder, self._arguments)
            self.llm.init_weight_transfer_engine({"init_info": {}})
        self.llm.start_weight_update()
        self.llm.update_weights({"update_info": {"weights": weights}})
        self.llm.finish_weight_update(str(policy_version))
        if not self.llm.reset_prefix_cache():
            raise YaokiError("vLLM did not reset its prefix cache of the old weights")

    def take_cache(self) -> None:
        if not self._has_cache:
            self.llm.wake_up(tags=["kv_cache"])
            self._has_cache = True

    def sleep(self) -> None:
        if self.llm is not None:
            self.llm.sleep(level=2)
            self._has_cache = False

    def wake(self) -> None:
        if self.llm is not None:
            self.llm.wake_up(tags=["weights"])


def _arguments(sampling: Sampling, options: VllmOptions) -> dict[str, Any]:
    """Arguments of vLLM's LLM."""
    return {
        "dtype": options.precision,
        "max_model_len": options.max_tokens,
        "max_num_seqs": options.max_rows,
        "tensor_parallel_size": options.tensor_parallel,
        "distributed_timeout_seconds": options.timeout_s,
        "cpu_distributed_timeout_seconds": options.timeout_s,
        "enable_prefix_caching": True,
        # The raw ones are before the temperature, the processed ones after it, and after top-p.
        "logprobs_mode": "raw_logprobs" if sampling.temperature == 1 else "processed_logprobs",
        "skip_tokenizer_init": True,
        "use_tqdm_on_load": False,
    }


def _start(config: PreTrainedConfig, folder: str, arguments: dict[str, Any]) -> Any:
    """vLLM's LLM, from a model folder that it needs only to start."""
    config.save_pretrained(folder)
    if _has_other_ranks():
        os.environ.setdefault("RANK", str(torch.distributed.get_rank()))
        os.environ.setdefault("LOCAL_RANK", "0")
    try:
        with warnings.catch_warnings(action="ignore"):
            return library().LLM(model=folder, **arguments)
    except (RuntimeError, ValueError) as error:
        raise YaokiError(
            f"vLLM cannot start with this model: {error}",
            hint="less engine.max_new_tokens, engine.batch_size or engine.gpu_memory_utilization need less "
            "memory; engine.type=transformers takes any model",
        ) from error


def _cache_bytes(config: PreTrainedConfig, options: VllmOptions) -> int:
    """Size of the KV cache for all completions at their longest, within bounds.

    UsageError for attention without a CPU kernel in vLLM, which would raise only while generating.
    """
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # type: ignore[import-not-found]

    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in (known := CPUAttentionBackend.get_supported_head_sizes()):
        raise UsageError(
            f"the model's attention heads are {size} wide; vLLM on a CPU can do {', '.join(map(str, known))}",
            hint="use engine.type=transformers, or another model",
        )
    itemsize = getattr(torch, options.precision).itemsize
    num_heads = max(1, config.num_key_value_heads // options.tensor_parallel)
    token_bytes = 2 * config.num_hidden_layers * num_heads * size * itemsize
    row_bytes = token_bytes * (options.max_tokens + _CPU_BLOCK_TOKENS)
    return int(max(row_bytes, min(row_bytes * options.max_rows, _CPU_CACHE_BYTES)))


def _has_other_ranks() -> bool:
    """Whether vLLM must use the learner's ranks, and start no others."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


@functools.cache
def _executor() -> Any:
    """vLLM's executor for existing ranks on CPUs, which exchange tensors through gloo.

    By default vLLM uses shared memory, under a name that all runs of a machine have in common, and in which a
    rank whose peer is lost waits for ever. With a different rendezvous name on each rank it does not.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher  # type: ignore[import-not-found]

    class OverGloo(ExecutorWithExternalLauncher):  # type: ignore[misc]
        """With a rendezvous name of its own, which is not used: the process group exists."""

        def _distributed_args(self) -> tuple[str, int, int]:
            rendezvous, rank, local_rank = super()._distributed_args()
            return f"{rendezvous}{rank}", rank, local_rank

    return OverGloo


@functools.cache
def _transfer() -> str:
    """Name of a weight transfer backend, registered with vLLM, that takes tensors of this process."""
    from vllm.distributed.weight_transfer import base, factory  # type: ignore[import-not-found]
    from vllm.model_executor.model_loader.reload import (  # type: ignore[import-not-found]
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    @dataclass
    class Start(base.WeightTransferInitInfo):  # type: ignore[misc]
        """No rendezvous needed."""

    @dataclass
    class Update(base.WeightTransferUpdateInfo):  # type: ignore[misc]
        """All weights."""

        weights: Weights

    class Transfer(base.WeightTransferEngine):  # type: ignore[misc]
        """Layer by layer, like vLLM's own transfers."""

        init_info_cls, update_info_cls = Start, Update

        def init_transfer_engine(self, init_info: Start) -> None:
            """No rendezvous needed."""

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: Update) -> None:
            self.model.load_weights(update_info.weights)
            for _ in update_info.weights:
                """Exhausts the iterator, so that missing weights are detected."""

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            """No-op."""

    factory.WeightTransferEngineFactory.register_engine("yaoki", Transfer)
    return "yaoki"
