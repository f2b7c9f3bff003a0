"""Weights on their way from the learner to an engine. Knows neither."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from yaoki.errors import YaokiError


def fitting(
    shapes: Mapping[str, torch.Size], weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The weights, one by one as they come; YaokiError for one that is left over, misshapen or missing.

    shapes: of every weight that the engine's model has. That one is missing is known at the end only, so
    nothing may be believed before that.
    """
    missing = dict(shapes)
    for name, tensor in weights:
        if name not in missing:
            raise _differ([name])
        if (expected := missing.pop(name)) != tensor.shape:
            raise YaokiError(f"{name} is {tuple(expected)} in the engine, {tuple(tensor.shape)} pushed")
        yield name, tensor
    if missing:
        raise _differ(sorted(missing))


def _differ(names: list[str]) -> YaokiError:
    return YaokiError(
        f"the engine's model and the pushed weights differ in {', '.join(names[:5])}",
        hint="learner and engine must be built from the same model",
    )
