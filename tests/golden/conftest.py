"""Golden runs use the cache of models that the resume tests make."""

from tests.resume.conftest import model_cache

__all__ = ["model_cache"]
