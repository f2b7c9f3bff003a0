"""The coefficient of the KL penalty: fixed, or steered towards a target.

The controller is part of the run's state: `state` returns what a config cannot rebuild.
"""

import math
from collections.abc import Mapping

from yaoki.errors import RefusedError, YaokiError

_MAX_ERROR = 0.2


class KLController:
    """A constant coefficient. It comes from the config alone, so there is no state."""

    def __init__(self, coef: float) -> None:
        self.coef = coef
        """Weight of the KL penalty in the next step."""

    def update(self, measured_kl: float | None, num_rollouts: int) -> None:
        """Adapt to the mean KL to the reference over `num_rollouts` rollouts; None without a reference."""

    def state(self) -> dict[str, float]:
        """What the config cannot rebuild."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from a `state` of the same kind of controller; raises RefusedError for another."""
        if state.keys() != self.state().keys():
            raise RefusedError(
                f"the saved KL controller holds {sorted(state)}, but {type(self).__name__} "
                f"holds {sorted(self.state())}",
                hint="resume with the kind of KL controller that the run was started with",
            )
        self.coef = state.get("coef", self.coef)


class AdaptiveKL(KLController):
    """A proportional controller that holds the KL near `target`.

    target: nats, per token or per rollout, whichever `update` is given; `horizon`: rollouts over which
    a constant error of one (clipped to 0.2) would change the coefficient by its full size.
    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self._target = target
        self._horizon = horizon

    def update(self, measured_kl: float | None, num_rollouts: int) -> None:
        """coef *= 1 + clip(measured / target - 1, -0.2, 0.2) * num_rollouts / horizon.

        More rollouts than the horizon count as one horizon: otherwise five of them would turn the sign.
        """
        assert measured_kl is not None, "an adaptive controller has a reference"
        if math.isnan(measured_kl):
            raise YaokiError(
                f"the KL to the reference is {measured_kl}: its coefficient ({self.coef}) cannot be adapted",
                hint="the policy has diverged; go back to an earlier step and lower the learning rate",
            )
        error = min(max(measured_kl / self._target - 1.0, -_MAX_ERROR), _MAX_ERROR)
        self.coef *= 1.0 + error * min(num_rollouts / self._horizon, 1.0)

    def state(self) -> dict[str, float]:
        return {"coef": self.coef}
