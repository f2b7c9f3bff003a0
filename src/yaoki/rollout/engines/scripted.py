"""An engine that says what it is told: the double for tests of everything around generation."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from yaoki.rollout.engine import OnFinished, Poll, Request, keep_none
from yaoki.types import Completion


class ScriptedEngine:
    """Answers each request by a function of the request; weights only move its version."""

    def __init__(self, script: Callable[[Request], Completion], *, batch_invariant: bool = False) -> None:
        self._script = script
        self.policy_version = -1
        self.batch_invariant = batch_invariant

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished = keep_none
    ) -> list[Completion]:
        """See RolloutEngine; when batch-invariant, the last one finishes first."""
        completions: dict[int, Completion] = {}
        for place in range(len(requests))[:: -1 if self.batch_invariant else 1]:
            poll()
            completions[place] = self._script(requests[place])
            if self.batch_invariant:
                on_finished(place, completions[place])
        ordered = [completions[place] for place in range(len(requests))]
        if not self.batch_invariant:
            for place, completion in enumerate(ordered):
                on_finished(place, completion)
        return ordered

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Certain of everything."""
        return [0.0] * (len(token_ids) - 1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        for _ in weights:
            pass
        self.policy_version = policy_version

    def sleep(self) -> None:
        """There is no memory to give back."""

    def wake(self) -> None:
        """It never sleeps."""
