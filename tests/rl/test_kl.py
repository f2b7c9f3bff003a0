"""The KL coefficient: by hand, in a loop with a plant, and through its state."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.errors import RefusedError, YaokiError
from yaoki.rl.kl import AdaptiveKL, KLController

from .ragged import checked


@pytest.mark.parametrize("measured", [5.0, None], ids=["measured", "no reference"])
def test_fixed_coefficient_stays_and_has_no_state(measured: float | None) -> None:
    controller = KLController(0.01)
    controller.update(measured, 1000)
    assert controller.coef == 0.01
    assert controller.state() == {}
    controller.restore({})
    assert controller.coef == 0.01


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (6.0, 0.5),  # on target
        (6.6, 0.5 * (1 + 0.1 * 0.2)),  # error 0.1; 2000 of 10000 rollouts
        (60.0, 0.5 * (1 + 0.2 * 0.2)),  # error 9, clipped to 0.2
        (5.4, 0.5 * (1 - 0.1 * 0.2)),
        (-1.0, 0.5 * (1 - 0.2 * 0.2)),  # an estimate may be negative
        (math.inf, 0.5 * (1 + 0.2 * 0.2)),
    ],
)
def test_adaptive_coefficient_by_hand(measured: float, expected: float) -> None:
    controller = AdaptiveKL(coef=0.5, target=6.0, horizon=10_000)
    controller.update(measured, num_rollouts=2000)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_a_step_beyond_the_horizon_counts_as_one_horizon() -> None:
    controller = AdaptiveKL(coef=1.0, target=1.0, horizon=10)
    controller.update(0.0, num_rollouts=1000)
    assert controller.coef == pytest.approx(0.8)


def test_adaptive_coefficient_finds_the_target() -> None:
    # A policy whose KL falls as the coefficient rises: kl = 1 / coef, so the target 4 needs 0.25.
    controller = AdaptiveKL(coef=5.0, target=4.0, horizon=100)
    for _ in range(200):
        controller.update(1 / controller.coef, num_rollouts=50)
    assert controller.coef == pytest.approx(0.25, rel=1e-3)


def test_nan_is_refused() -> None:
    controller = AdaptiveKL(0.5, 6.0, 100)
    with pytest.raises(YaokiError, match=r"KL to the reference is nan.*0\.5"):
        controller.update(math.nan, 10)
    assert controller.coef == 0.5


@checked
@given(st.lists(st.floats(0, 10), max_size=20), st.lists(st.floats(0, 10), max_size=20))
def test_restored_controller_goes_on_with_the_same_bits(before: list[float], after: list[float]) -> None:
    unbroken = AdaptiveKL(0.3, 1.0, 100)
    for measured in before:
        unbroken.update(measured, 7)
    resumed = AdaptiveKL(0.3, 1.0, 100)
    resumed.restore(json.loads(json.dumps(unbroken.state())))
    for measured in after:
        unbroken.update(measured, 7)
        resumed.update(measured, 7)
    assert resumed.coef == unbroken.coef


@pytest.mark.parametrize(
    ("controller", "state"),
    [
        (KLController(0.1), {"coef": 0.2}),
        (AdaptiveKL(0.1, 1, 1), {}),
        (AdaptiveKL(0.1, 1, 1), {"coef": 1, "x": 2}),
    ],
)
def test_the_state_of_another_kind_is_refused(controller: KLController, state: dict[str, float]) -> None:
    with pytest.raises(RefusedError, match="KL controller"):
        controller.restore(state)
    assert controller.coef == 0.1
