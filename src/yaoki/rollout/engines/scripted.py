"""A scripted engine: the test double for everything around generation. Small because it does nothing else."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from yaoki.rollout.engine import OnFinished, Request
from yaoki.types import Completion, Poll


class ScriptedEngine:
    """Answers each request by a function of the request; weights only move its version."""

    def __init__(self, script: Callable[[Request], Completion], *, batch_invariant: bool = False) -> None:
        self._script = script
        self.policy_version = -1
        self.batch_invariant = batch_invariant

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """See RolloutEngine; when batch-invariant, the last one finishes first."""
        completions: dict[int, Completion] = {}
        for place in range(len(requests))[:: -1 if self.batch_invariant else 1]:
            poll()
            completions[place] = self._script(requests[place])
            if self.batch_invariant and on_finished is not None:
                on_finished(place, completions[place])
        ordered = [completions[place] for place in range(len(requests))]
        if not self.batch_invariant and on_finished is not None:
            for place, completion in enumerate(ordered):
                on_finished(place, completion)
        return ordered

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Probability 1 for every token."""
        return [0.0] * (len(token_ids) - 1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        for _ in weights:
            pass
        self.policy_version = policy_version

    def sleep(self) -> None:
        """No-op: it holds no memory."""

    def wake(self) -> None:
        """No-op."""
