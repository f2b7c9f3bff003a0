"""The engine gets the learner's weights, and is believed only when it computes with them.

Knows nothing of how an engine takes weights.
"""

import math
from dataclasses import dataclass

from yaoki.errors import NonFiniteError
from yaoki.learner.learner import Learner
from yaoki.rollout.engine import RolloutEngine
from yaoki.rollout.probe import Tolerance, check_weights, model_logprobs


@dataclass(frozen=True, slots=True)
class WeightSync:
    """Pushes weights and checks each push with a text that engine and learner must read alike."""

    engine: RolloutEngine
    learner: Learner
    probe: tuple[int, ...]
    """Token ids of the text."""
    tolerance: Tolerance
    """How far log-probabilities of the two may be apart."""

    def push(self, policy_version: int) -> None:
        """The engine generates with the learner's weights from here on, and the learner rests.

        All ranks push together. WeightSyncError if the engine computes with other weights, NonFiniteError
        if the policy itself gives nothing to compare with.
        """
        self.engine.load_weights(self.learner.weights(), policy_version)
        expected = model_logprobs(self.learner.policy.model, self.probe)
        if not all(map(math.isfinite, expected)):
            raise NonFiniteError(
                "the policy's log-probabilities are not finite, and neither, probably, are its weights",
                hint="training has diverged, or the model is damaged; the last checkpoint is untouched: fork "
                "the run from it with a lower learning rate",
            )
        self.learner.rest()  # before the engine takes the memory of its cache, to compute
        check_weights(self.engine, policy_version, self.probe, expected, self.tolerance)
