import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.models.builtin import tiny_random, tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def learner_model() -> PreTrainedModel:
    """The weights that are pushed; nobody may change them."""
    return tiny_random(1).eval().requires_grad_(False)
