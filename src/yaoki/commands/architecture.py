"""The weights of a model, from the numbers in its config.json: their names and shapes. No torch.

Covers decoders of the Llama kind: Qwen2, Qwen2.5, Qwen3, Llama, Mistral. Knows nothing of memory or training.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaoki.errors import NothingThereError, UsageError

Shapes = dict[str, tuple[int, ...]]

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers on which the weights depend."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool
    """Embeddings and language-model head are one tensor."""
    biased: tuple[str, ...] = ()
    """Projections that have a bias."""
    has_qk_norm: bool = False
    """Queries and keys are normalised head by head (Qwen3)."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads together; the values have the same."""
        return self.num_kv_heads * self.head_dim

    def layer(self) -> Shapes:
        """One layer, by the names below it."""
        hidden, inner = self.hidden_size, self.intermediate_size
        projections = {
            "self_attn.q_proj": (self.query_size, hidden),
            "self_attn.k_proj": (self.key_size, hidden),
            "self_attn.v_proj": (self.key_size, hidden),
            "self_attn.o_proj": (hidden, self.query_size),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes: Shapes = {f"{name}.weight": shape for name, shape in projections.items()}
        shapes |= {f"{name}.bias": (projections[name][0],) for name in self.biased}
        shapes |= {f"{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        if self.has_qk_norm:
            shapes |= {f"self_attn.{name}.weight": (self.head_dim,) for name in ("q_norm", "k_norm")}
        return shapes

    def policy(self) -> Shapes:
        """The causal language model, tied weights once."""
        head = (self.vocab_size, self.hidden_size)
        return self._backbone() | ({} if self.is_tied else {"lm_head.weight": head})

    def critic(self) -> Shapes:
        """The same backbone with a value head."""
        return self._backbone() | {"score.weight": (1, self.hidden_size)}

    def _backbone(self) -> Shapes:
        layer = self.layer()
        layers = {
            f"model.layers.{number}.{name}": shape
            for number in range(self.num_layers)
            for name, shape in layer.items()
        }
        embeddings = (self.vocab_size, self.hidden_size)
        return {"model.embed_tokens.weight": embeddings} | layers | {"model.norm.weight": (self.hidden_size,)}


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_TINY = Architecture(3, 128, 8, 8, 16, 512, 264, True, _QKV)

KNOWN = {
    "builtin:tiny": _TINY,
    "builtin:tiny-random": _TINY,
    "Qwen/Qwen2.5-0.5B": Architecture(24, 896, 14, 2, 64, 4864, 151936, True, _QKV),
    "Qwen/Qwen2.5-1.5B": Architecture(28, 1536, 12, 2, 128, 8960, 151936, True, _QKV),
    "Qwen/Qwen2.5-7B": Architecture(28, 3584, 28, 4, 128, 18944, 152064, False, _QKV),
    "Qwen/Qwen2.5-32B": Architecture(64, 5120, 40, 8, 128, 27648, 152064, False, _QKV),
}
"""Models that need no folder. Source: their config.json on the hub; for the tiny one `models/builtin.py`."""


def architecture_of(source: str) -> Architecture:
    """The architecture of a model folder, or of a model that is known by name. Nothing is downloaded.

    Raises:
        NothingThereError: neither a folder with a config.json nor a known name.
        UsageError: its config.json makes no sense, or is of another family of models.
    """
    path = Path(source) / _CONFIG
    if source in KNOWN and not path.exists():
        return KNOWN[source]
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NothingThereError(
            f"the architecture of {source!r} is not known here, and nothing is downloaded for a plan",
            hint=f"name a folder that holds the model's {_CONFIG} (the weights are not needed), "
            f"such as policy.init_from=FOLDER, or one of {', '.join(KNOWN)}",
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object")
    return _architecture(content, path)


def _architecture(content: Mapping[str, Any], path: Path) -> Architecture:
    family = content.get("model_type")
    all_biased = (*_QKV, "self_attn.o_proj") if content.get("attention_bias") else ()
    biased: dict[Any, tuple[str, ...]] = {
        "qwen2": _QKV,
        "qwen3": all_biased,
        "llama": all_biased + (_MLP if content.get("mlp_bias") else ()),
        "mistral": (),
    }
    if family not in biased:
        raise UsageError(
            f"{path}: there is no plan for models of type {family!r}", hint=f"it is for {', '.join(biased)}"
        )
    hidden_size = _number(content, "hidden_size", path)
    num_heads = _number(content, "num_attention_heads", path)
    return Architecture(
        num_layers=_number(content, "num_hidden_layers", path),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_number(
            {"num_key_value_heads": num_heads} | _stated(content), "num_key_value_heads", path
        ),
        head_dim=_number({"head_dim": hidden_size // num_heads} | _stated(content), "head_dim", path),
        intermediate_size=_number(content, "intermediate_size", path),
        vocab_size=_number(content, "vocab_size", path),
        is_tied=content.get("tie_word_embeddings") is True,
        biased=biased[family],
        has_qk_norm=family == "qwen3",
    )


def _stated(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None}


def _number(content: Mapping[str, Any], name: str, path: Path) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{path}: {name} is {value!r}, not a number of at least 1")
    return value
