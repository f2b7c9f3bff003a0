"""An engine that says what it is told: the double for tests of everything around generation."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from yaoki.rollout.engine import Poll, Request
from yaoki.types import Completion


class ScriptedEngine:
    """Answers each request by a function of the request; weights only move its version."""

    def __init__(self, script: Callable[[Request], Completion]) -> None:
        self._script = script
        self.policy_version = -1

    def generate(self, requests: Sequence[Request], poll: Poll) -> list[Completion]:
        completions = []
        for request in requests:
            poll()
            completions.append(self._script(request))
        return completions

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        for _ in weights:
            pass
        self.policy_version = policy_version
