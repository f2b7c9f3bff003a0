"""Retention as lists of survivors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.checkpoint.retention import Entry, Policy, Standing, decide
from yaoki.errors import UsageError


def survivors(entries: list[Entry], policy: Policy) -> list[int]:
    return [decision.entry.step for decision in decide(entries, policy) if decision.stays]


def reasons(entries: list[Entry], policy: Policy) -> dict[int, list[str]]:
    return {decision.entry.step: list(decision.reasons) for decision in decide(entries, policy)}


def good(*steps: int) -> list[Entry]:
    return [Entry(step, Standing.VERIFIED) for step in steps]


def unread(*steps: int) -> list[Entry]:
    return [Entry(step, Standing.UNREAD) for step in steps]


def spare(*steps: int) -> list[Entry]:
    return [Entry(step, Standing.SPARE) for step in steps]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(keep_last=1), [60]),
        (Policy(keep_last=2), [50, 60]),
        (Policy(keep_last=1, keep_every=20), [20, 40, 60]),
        (Policy(keep_last=2, keep_every=30), [30, 50, 60]),
    ],
)
@pytest.mark.parametrize("older", [good, unread])
def test_last_and_every(policy: Policy, expected: list[int], older) -> None:
    assert survivors([*older(10, 20, 30, 40), *good(50, 60)], policy) == expected


def test_nothing_goes_while_fewer_than_keep_last_are_verified() -> None:
    assert survivors(good(10, 20), Policy(keep_last=9)) == [10, 20]
    assert survivors([*unread(10, 20), *good(30)], Policy(keep_last=2)) == [10, 20, 30]
    assert survivors([*spare(10), *good(20)], Policy(keep_last=2)) == [10, 20]
    assert survivors(spare(10, 20, 30), Policy(keep_last=1)) == [10, 20, 30]
    assert survivors(unread(10, 20), Policy(keep_last=1)) == [10, 20]
    assert decide([], Policy(keep_last=1)) == []


def test_what_was_not_read_never_stands_in_for_another() -> None:
    assert survivors([*good(10), *unread(20), *good(30)], Policy(keep_last=2)) == [10, 20, 30]


def test_best_by_metric_counts_only_known_numbers_and_prefers_the_newer() -> None:
    metrics = {10: 0.9, 20: math.nan, 30: 0.5, 40: 0.9, 50: None, 60: 0.1}
    entries = [Entry(step, Standing.VERIFIED, metric) for step, metric in metrics.items()]
    assert survivors(entries, Policy(keep_last=1, keep_best=1)) == [40, 60]
    assert survivors(entries, Policy(keep_last=1, keep_best=2)) == [10, 40, 60]
    assert survivors(entries, Policy(keep_last=1, keep_best=9)) == [10, 30, 40, 60]


def test_pinned_ones_stay_and_do_not_use_up_places() -> None:
    pinned = [Entry(10, Standing.UNREAD, pins=("mine",)), Entry(15, Standing.SPARE, pins=("a", "b"))]
    entries = [*pinned, *good(20, 30, 40)]
    assert survivors(entries, Policy(keep_last=2)) == [10, 15, 30, 40]
    assert reasons(entries, Policy(keep_last=2))[15] == ["pinned as a", "pinned as b"]


def test_a_corrupt_one_never_counts_as_kept() -> None:
    assert survivors([*good(10, 20), *spare(30, 40)], Policy(keep_last=2)) == [10, 20, 30, 40]
    assert survivors([*good(10, 20, 30), *spare(40)], Policy(keep_last=1, keep_every=40)) == [30, 40]


def test_a_corrupt_one_goes_when_enough_good_ones_stand_in_for_it() -> None:
    assert survivors([*spare(10), *good(20, 30)], Policy(keep_last=2)) == [20, 30]
    assert survivors([*good(10), *spare(20), *good(30)], Policy(keep_last=2)) == [10, 20, 30]
    assert survivors([*spare(40), *good(50, 60)], Policy(keep_last=1, keep_every=40)) == [60]


def test_one_that_was_replaced_goes_when_its_step_is_there_again() -> None:
    assert reasons([*spare(20)], Policy(keep_last=1))[20]
    first, second = decide([*spare(20), *good(20)], Policy(keep_last=1))
    assert (first.stays, second.stays) == (False, True)
    assert all(decision.stays for decision in decide([*spare(20), *good(20)], Policy(keep_last=2)))


def test_the_young_stay_and_so_do_those_of_unknown_age() -> None:
    ages = {10: 100.0, 20: 200.0, 30: None, 40: 300.0, 50: 50.0}
    entries = [Entry(step, Standing.VERIFIED, created_unix_s=age) for step, age in ages.items()]
    assert survivors(entries, Policy(keep_last=1, keep_since_unix_s=200.0)) == [20, 30, 40, 50]
    assert survivors(entries, Policy(keep_last=1)) == [50]


def test_each_that_stays_says_why() -> None:
    entries = [*unread(10, 15, 20), Entry(30, Standing.UNREAD, 0.75), *good(40, 50), *spare(60)]
    found = reasons(entries, Policy(keep_last=2, keep_every=20, keep_best=1))
    assert found == {
        10: [],
        15: [],
        20: ["its step is a multiple of 20"],
        30: ["one of the best 1 (0.75)"],
        40: ["one of the newest 2", "its step is a multiple of 20"],
        50: ["the newest verified one"],
        60: ["newer than the oldest of the 2 verified ones"],
    }
    assert reasons(good(10), Policy(keep_last=1))[10] == ["the newest verified one"]
    assert reasons(unread(10), Policy(keep_last=3))[10] == ["nothing is removed while 0 of 3 are verified"]


@pytest.mark.parametrize(
    "arguments", [{"keep_last": 0}, {"keep_last": 1, "keep_every": 0}, {"keep_last": 1, "keep_best": -1}]
)
def test_a_policy_that_would_keep_nothing_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Policy(**arguments)


ENTRIES = st.dictionaries(
    st.integers(0, 40),
    st.tuples(
        st.sampled_from(Standing),
        st.none() | st.floats(),
        st.sampled_from([(), ("p",)]),
        st.none() | st.floats(0, 9),
    ),
    max_size=12,
).map(lambda states: [Entry(step, *state) for step, state in states.items()])
POLICIES = st.builds(
    Policy, st.integers(1, 4), st.none() | st.integers(1, 9), st.integers(0, 3), st.none() | st.floats(0, 9)
)


@given(ENTRIES, POLICIES, st.randoms(use_true_random=False))
def test_promises_hold_for_every_list(entries: list[Entry], policy: Policy, randomness) -> None:
    decisions = decide(entries, policy)
    assert [decision.entry for decision in decisions] == entries
    doomed = [decision.entry for decision in decisions if not decision.stays]
    left = [decision.entry for decision in decisions if decision.stays]
    verified = sorted(entry.step for entry in entries if entry.standing is Standing.VERIFIED)
    assert not any(entry.pins for entry in doomed)
    assert set(verified[-policy.keep_last :]) <= {entry.step for entry in left}
    if doomed:
        assert len(verified) >= policy.keep_last
        assert all(entry.step <= verified[-policy.keep_last] for entry in doomed)
    randomness.shuffle(entries)
    assert {d.entry.step: d.reasons for d in decide(entries, policy)} == {
        d.entry.step: d.reasons for d in decisions
    }
    assert all(decision.stays for decision in decide(left, policy)), "what is left is stable"
