"""Retention as lists of survivors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.checkpoint.retention import Entry, Policy, select_doomed
from yaoki.errors import UsageError


def survivors(entries: list[Entry], policy: Policy) -> list[int]:
    doomed = select_doomed(entries, policy)
    return [entry.step for entry in entries if entry not in doomed]


def good(*steps: int) -> list[Entry]:
    return [Entry(step, verified=True) for step in steps]


def bad(*steps: int) -> list[Entry]:
    return [Entry(step, verified=False) for step in steps]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(keep_last=1), [60]),
        (Policy(keep_last=2), [50, 60]),
        (Policy(keep_last=9), [10, 20, 30, 40, 50, 60]),
        (Policy(keep_last=1, keep_every=20), [20, 40, 60]),
        (Policy(keep_last=2, keep_every=30), [30, 50, 60]),
    ],
)
def test_last_and_every(policy: Policy, expected: list[int]) -> None:
    assert survivors(good(10, 20, 30, 40, 50, 60), policy) == expected


def test_best_by_metric_counts_only_known_numbers_and_prefers_the_newer() -> None:
    metrics = {10: 0.9, 20: math.nan, 30: 0.5, 40: 0.9, 50: None, 60: 0.1}
    entries = [Entry(step, True, metric) for step, metric in metrics.items()]
    assert survivors(entries, Policy(keep_last=1, keep_best=1)) == [40, 60]
    assert survivors(entries, Policy(keep_last=1, keep_best=2)) == [10, 40, 60]
    assert survivors(entries, Policy(keep_last=1, keep_best=9)) == [10, 30, 40, 60]


def test_pinned_ones_stay_and_do_not_use_up_places() -> None:
    entries = [Entry(10, True, pinned=True), Entry(15, False, pinned=True), *good(20, 30, 40)]
    assert survivors(entries, Policy(keep_last=2)) == [10, 15, 30, 40]


def test_a_corrupt_one_never_counts_as_kept() -> None:
    assert survivors([*good(10, 20), *bad(30, 40)], Policy(keep_last=2)) == [10, 20, 30, 40]
    assert survivors([*good(10, 20, 30), *bad(40)], Policy(keep_last=1, keep_every=40)) == [30, 40]


def test_a_corrupt_one_goes_when_enough_good_ones_stand_in_for_it() -> None:
    assert survivors([*bad(10), *good(20)], Policy(keep_last=2)) == [10, 20]
    assert survivors([*bad(10), *good(20, 30)], Policy(keep_last=2)) == [20, 30]
    assert survivors([*good(10), *bad(20), *good(30)], Policy(keep_last=2)) == [10, 20, 30]


def test_one_that_was_replaced_goes_when_its_step_is_there_again() -> None:
    assert select_doomed([*bad(20), *good(20)], Policy(keep_last=1)) == bad(20)
    assert select_doomed([*bad(20), *good(20)], Policy(keep_last=2)) == []


def test_without_a_verified_one_nothing_goes() -> None:
    assert select_doomed(bad(10, 20, 30), Policy(keep_last=1)) == []
    assert select_doomed([], Policy(keep_last=1)) == []


@pytest.mark.parametrize(
    "arguments", [{"keep_last": 0}, {"keep_last": 1, "keep_every": 0}, {"keep_last": 1, "keep_best": -1}]
)
def test_a_policy_that_would_keep_nothing_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Policy(**arguments)


@given(
    st.dictionaries(
        st.integers(0, 40), st.tuples(st.booleans(), st.none() | st.floats(), st.booleans()), max_size=12
    ),
    st.builds(Policy, st.integers(1, 4), st.none() | st.integers(1, 9), st.integers(0, 3)),
    st.randoms(use_true_random=False),
)
def test_promises_hold_for_every_list(states: dict, policy: Policy, randomness) -> None:
    entries = [Entry(step, *state) for step, state in states.items()]
    doomed = select_doomed(entries, policy)
    steps_left = {entry.step for entry in entries} - {entry.step for entry in doomed}
    verified = sorted(entry.step for entry in entries if entry.verified)
    assert not any(entry.pinned for entry in doomed)
    assert set(verified[-policy.keep_last :]) <= steps_left
    assert all(verified and entry.step < verified[-1] for entry in doomed)
    assert doomed == sorted(doomed, key=lambda entry: entry.step)
    randomness.shuffle(entries)
    assert select_doomed(entries, policy) == doomed
    again = [entry for entry in entries if entry not in doomed]
    assert select_doomed(again, policy) == []
