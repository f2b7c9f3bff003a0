"""Everything here needs vLLM. The first start takes ten seconds; then weights are pushed in two."""

import importlib.util

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from yaoki.models.builtin import tiny_tokenizer

from .models import wide_headed


@pytest.fixture(autouse=True, scope="session")
def _with_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make test-vllm")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def learner_model() -> PreTrainedModel:
    """The weights that are pushed; nobody may change them."""
    return wide_headed(1)


@pytest.fixture(scope="session")
def other_model() -> Qwen2ForCausalLM:
    return wide_headed(2)
