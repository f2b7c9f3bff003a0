"""Settings of the engine that samples completions, and what each type of engine can do."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from yaoki.config.fields import FREE, STATE, NonEmpty, Positive, Section


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What the rest of the trainer needs to know about a type of engine."""

    is_deterministic: bool
    """The same requests under the same weights give the same bits, in another process too."""
    sleeps: bool
    """Returns its memory to the device while the learner trains."""
    is_shared: bool
    """Neighbouring ranks can share one (tensor parallelism)."""
    is_float32: bool
    """Holds weights and cache in float32, whatever `train.precision` is."""


ENGINES: Mapping[str, EngineTraits] = MappingProxyType(
    {
        "transformers": EngineTraits(is_deterministic=True, sleeps=False, is_shared=False, is_float32=True),
        # What vLLM samples depends, in the last bits, on what else is in its batch.
        "vllm": EngineTraits(is_deterministic=False, sleeps=True, is_shared=True, is_float32=False),
    }
)


class EngineConfig(Section):
    """How completions are sampled."""

    type: Literal["transformers", "vllm"] = Field("transformers", json_schema_extra=STATE)
    """Which engine generates. vLLM is installed separately, and does not promise the same bits; its updates
    of weights in place, on GPUs, are experimental."""
    batch_size: Positive = 128
    """Completions generated together: the fixed micro-batch of rollouts. Its size changes the last bits."""
    max_new_tokens: Positive = 8000
    """Completions are cut off here (and can then earn no reward)."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits before sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens that holds this much probability."""
    stop: tuple[NonEmpty, ...] = ("</answer>",)
    """A completion ends where its text contains one of these."""
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1, json_schema_extra=FREE)
    """Share of each GPU's memory that vLLM may take, for weights, keys and values (vllm on GPUs only)."""
    tensor_parallel: Positive = Field(1, json_schema_extra=FREE)
    """Neighbouring workers that share one vLLM engine, each with a slice of the weights, for a policy that is
    too large for one device. Must divide the number of workers (vllm only)."""

    @property
    def traits(self) -> EngineTraits:
        """What this type of engine can do."""
        return ENGINES[self.type]

    @model_validator(mode="after")
    def _is_shared_by(self) -> Self:
        if not self.traits.is_shared and self.tensor_parallel != 1:
            raise ValueError(
                "engine.type and engine.tensor_parallel: only a vllm engine can be shared by workers; set "
                f'engine.type="vllm", or engine.tensor_parallel=1, not {self.tensor_parallel}'
            )
        return self

    @model_validator(mode="after")
    def _vllm_can(self) -> Self:
        if self.type == "vllm" and not 0.01 <= self.temperature <= 2:
            raise ValueError(
                "engine.type and engine.temperature: vllm samples at temperatures from 0.01 to 2, not at "
                f'{self.temperature}; set engine.temperature=1, or engine.type="transformers"'
            )
        if self.type == "vllm" and self.temperature != 1 and self.top_p != 1:
            raise ValueError(
                "engine.temperature and engine.top_p: vllm gives log-probabilities before the temperature or "
                "after top_p, and training needs those in between; set one of them to 1, or "
                'engine.type="transformers"'
            )
        return self
