"""Which settings of the engine go together."""

import pytest
from pydantic import ValidationError

from yaoki.config.schema import EngineConfig


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"top_p": 0.9}, {"temperature": 2.0}])
def test_what_vllm_can_do(settings: dict[str, float]) -> None:
    assert EngineConfig(type="vllm", **settings).type == "vllm"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 2.5}, "temperatures from 0.01 to 2, not at 2.5"),
        ({"temperature": 0.001}, "temperatures from 0.01 to 2"),
        ({"temperature": 0.7, "top_p": 0.9}, "engine.temperature and engine.top_p"),
    ],
)
def test_what_vllm_cannot_do(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineConfig(type="vllm", **settings)
    EngineConfig(**settings)


def test_only_vllm_is_shared_by_workers() -> None:
    assert EngineConfig(type="vllm", tensor_parallel=4).tensor_parallel == 4
    message = r"only a vllm engine can be shared by workers; .* engine.tensor_parallel=1, not 4"
    with pytest.raises(ValidationError, match=message):
        EngineConfig(tensor_parallel=4)
