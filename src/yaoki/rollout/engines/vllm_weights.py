"""vLLM's engine itself, and how weights get into it; the only file that imports vLLM.

On a CPU the engine is built anew from a folder for every push: vLLM's CPU kernels keep packed copies of the
weights, which an update in place does not reach. On a GPU the weights are updated in place by vLLM's
interface for weight transfer, with a transfer of our own, registered with vLLM, that takes tensors of this
very process. That way has been run on a CPU with the packing taken out, and not yet on a GPU. Knows nothing
of generating.
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
"""The cache is handed out in such blocks."""
_CPU_CACHE_BYTES = 2**29
"""Of keys and values at most, unless one completion needs more; vLLM takes the memory at every start."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What vLLM must know beside model and sampling."""

    precision: str
    """Of weights, cache and computation: float32 or bfloat16."""
    max_tokens: int
    """Longest prompt and its completion together."""
    max_rows: int
    """Completions that grow at the same time."""
    gpu_memory_utilization: float
    """Share of the device's memory, for weights, cache and all else. Used when updating in place."""
    in_place: bool
    """Update weights in place (on a GPU), or rebuild the engine for every push (on a CPU)."""
    tensor_parallel: int = 1
    """Ranks that share one engine, neighbours; the number of ranks is a multiple of it."""
    timeout_s: int = 1800
    """How long ranks that share an engine wait for one that does not answer."""


class VllmModel(Protocol):
    """vLLM's LLM with a way for weights to get into it."""

    llm: Any
    """None before the first push, and whenever the memory that it takes is given back."""

    def push(self, weights: Weights, policy_version: int) -> None:
        """Hold these weights, all of them, and acknowledge their version."""
        ...

    def take_cache(self) -> None:
        """Take back the memory of keys and values. No part of a push: the learner may rest in between."""
        ...

    def sleep(self) -> None:
        """Give back memory; forget the weights."""
        ...

    def wake(self) -> None:
        """Take back the memory that a push needs."""
        ...


def new_model(
    config: PreTrainedConfig, architecture: str, sampling: Sampling, options: VllmOptions
) -> VllmModel:
    """UsageError for what vLLM would find out in the middle of the first step, or never say clearly."""
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
            f"prompt and completion may take {options.max_tokens} tokens, the model goes up to {longest}",
            hint="lower engine.max_new_tokens or data.max_prompt_tokens",
        )
    require_even_slices(config, options.tensor_parallel)
    named = copy.deepcopy(config)
    named.architectures = [architecture]
    return (_UpdatedInPlace if options.in_place else _Rebuilt)(named, sampling, options)


def require_even_slices(config: PreTrainedConfig, num_slices: int) -> None:
    """UsageError unless vLLM can cut the model into so many slices."""
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
    """vLLM, imported at the first call. It reads the settings in the environment then."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the learner computes on the same cores
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    import vllm.config  # type: ignore[import-not-found]
    import vllm.sampling_params  # type: ignore[import-not-found]

    return vllm


class _Rebuilt:
    """Weights get in by building the engine; asleep, there is none."""

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
        # What it would do at its end, or at exit, ends the process groups, and they are the learner's too.
        self.llm.llm_engine.engine_core._finalizer.detach()
        self.llm.update_weight_version(str(policy_version))

    def take_cache(self) -> None:
        """The engine was built with it."""

    def sleep(self) -> None:
        if self.llm is None:
            return
        self.llm.llm_engine.model_executor.shutdown()
        self.llm = None
        gc.unfreeze()  # it froze all objects when it started
        gc.collect()

    def wake(self) -> None:
        """The next push builds the engine."""


class _UpdatedInPlace:
    """The engine stays; weights get in by vLLM's interface for weight transfer."""

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
            raise YaokiError("vLLM did not forget what it had cached with the old weights")

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
    """What both ways tell vLLM's LLM."""
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
    """vLLM's LLM on a model folder, which it does not need any more afterwards."""
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
    """Room for the keys and values of all completions at their longest, within bounds.

    UsageError for attention that vLLM has no CPU kernel for: it would only say so while generating.
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
    """Then vLLM works on the learner's ranks, and starts no others."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


@functools.cache
def _executor() -> Any:
    """vLLM's executor for ranks that are there already, on CPUs: they exchange tensors through gloo.

    Left to itself vLLM takes shared memory, under a name that all runs of a machine would have in common, and
    where a rank whose partner is gone waits for ever. It does not where ranks name their meeting differently.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher  # type: ignore[import-not-found]

    class OverGloo(ExecutorWithExternalLauncher):  # type: ignore[misc]
        """As it is, but for the name. Nobody meets there: the process group exists."""

        def _distributed_args(self) -> tuple[str, int, int]:
            meeting, rank, local_rank = super()._distributed_args()
            return f"{meeting}{rank}", rank, local_rank

    return OverGloo


@functools.cache
def _transfer() -> str:
    """The name of a weight transfer, registered with vLLM, that takes tensors of this process as they are."""
    from vllm.distributed.weight_transfer import base, factory  # type: ignore[import-not-found]
    from vllm.model_executor.model_loader.reload import (  # type: ignore[import-not-found]
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    @dataclass
    class Start(base.WeightTransferInitInfo):  # type: ignore[misc]
        """There is nobody to meet."""

    @dataclass
    class Update(base.WeightTransferUpdateInfo):  # type: ignore[misc]
        """All weights."""

        weights: Weights

    class Transfer(base.WeightTransferEngine):  # type: ignore[misc]
        """Layer by layer, as vLLM's own transfers do it."""

        init_info_cls, update_info_cls = Start, Update

        def init_transfer_engine(self, init_info: Start) -> None:
            """There is nobody to meet."""

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: Update) -> None:
            self.model.load_weights(update_info.weights)
            for _ in update_info.weights:
                """Weights that the model leaves out; looked at so that it is known that all were there."""

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            """There is nothing to let go of."""

    factory.WeightTransferEngineFactory.register_engine("yaoki", Transfer)
    return "yaoki"
