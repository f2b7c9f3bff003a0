"""The framework generators of this process as JSON: part of the run's state.

No step of Yaoki draws from them, but a model may (dropout). Restored last, right before the first step.
"""

import base64
import random
from typing import Any

import numpy as np
import torch

from yaoki.errors import CorruptCheckpointError
from yaoki.strict_json import JSON


def seed_generators(value: int) -> None:
    """Seed all generators for a fresh run."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


def capture() -> JSON:
    """State of the python, numpy, torch and (with a device) CUDA generators."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, JSON] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in _cuda_states()],
    }
    return states


def restore(saved: JSON) -> None:
    """Restore all generators; CUDA's only with the same number of devices (otherwise the resume is
    elastic)."""
    state: Any = saved
    match state:
        case {
            "python": [version, [*words], gauss],
            "numpy": [name, [*keys], position, has_gauss, cached],
            "torch": str(torch_state),
            "cuda": [*cuda_states],
        }:
            random.setstate((version, tuple(words), gauss))
            words32 = np.array(keys, dtype=np.uint32)
            np.random.set_state((name, words32, position, has_gauss, cached))
            torch.set_rng_state(_decode(torch_state))
            if torch.cuda.is_available() and len(cuda_states) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([_decode(str(state)) for state in cuda_states])
        case _:
            raise CorruptCheckpointError("the generators' states do not have the expected form")


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
