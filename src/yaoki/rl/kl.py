"""The coefficient of the KL penalty: fixed, or steered towards a target.

The controller is part of the run's state: `state` returns what a config cannot rebuild.
"""

import math
from collections.abc import Mapping
from typing import Protocol

from yaoki.errors import RefusedError, YaokiError

_MAX_ERROR = 0.2


class KLController(Protocol):
    """What the trainer asks of a controller, once per step."""

    @property
    def coef(self) -> float:
        """Weight of the KL penalty in the next step."""

    def update(self, measured_kl: float | None, num_rollouts: int) -> None:
        """Adapt to the mean KL to the reference over `num_rollouts` rollouts; None without a reference."""

    def state(self) -> dict[str, float]:
        """What `restore` needs to go on exactly."""

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a `state` of the same kind of controller; raises RefusedError for another."""


class FixedKL:
    """A constant coefficient. It comes from the config alone, so there is no state."""

    def __init__(self, coef: float) -> None:
        self._coef = coef

    @property
    def coef(self) -> float:
        return self._coef

    def update(self, measured_kl: float | None, num_rollouts: int) -> None:
        """No-op."""

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        _check_keys(self, state)


class AdaptiveKL:
    """A proportional controller that holds the KL near `target`.

    target: nats, per token or per rollout, whichever `update` is given; `horizon`: rollouts over which
    a constant error of one (clipped to 0.2) would change the coefficient by its full size.
    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        self._coef = coef
        self._target = target
        self._horizon = horizon

    @property
    def coef(self) -> float:
        return self._coef

    def update(self, measured_kl: float | None, num_rollouts: int) -> None:
        """coef *= 1 + clip(measured / target - 1, -0.2, 0.2) * num_rollouts / horizon.

        More rollouts than the horizon count as one horizon: otherwise five of them would turn the sign.
        """
        assert measured_kl is not None, "an adaptive controller has a reference"
        if math.isnan(measured_kl):
            raise YaokiError(
                f"the KL to the reference is {measured_kl}: its coefficient ({self._coef}) cannot be adapted",
                hint="the policy has diverged; go back to an earlier step and lower the learning rate",
            )
        error = min(max(measured_kl / self._target - 1.0, -_MAX_ERROR), _MAX_ERROR)
        self._coef *= 1.0 + error * min(num_rollouts / self._horizon, 1.0)

    def state(self) -> dict[str, float]:
        return {"coef": self._coef}

    def restore(self, state: Mapping[str, float]) -> None:
        _check_keys(self, state)
        self._coef = state["coef"]


def _check_keys(controller: KLController, state: Mapping[str, float]) -> None:
    if state.keys() != controller.state().keys():
        raise RefusedError(
            f"the saved KL controller holds {sorted(state)}, but {type(controller).__name__} "
            f"holds {sorted(controller.state())}",
            hint="resume with the kind of KL controller that the run was started with",
        )
