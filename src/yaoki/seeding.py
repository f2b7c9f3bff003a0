"""Randomness by coordinates: every random choice is a pure function of the run's seed and a place.

No generator has a position that a crash could lose: the seed of a completion depends on the run's
seed, the purpose and (step, prompt, sample) alone; the number that picks its token t depends on
that seed and t alone. Small because everything else depends on it.
"""

import hashlib
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Purpose(StrEnum):
    """Streams that never touch one another. The values are part of the run format: never rename one."""

    DATA_ORDER = "data-order"
    TASK = "task"
    ROLLOUT = "rollout"
    MINI_BATCH = "mini-batch"
    EVALUATION = "evaluation"
    VALUE_HEAD = "value-head"
    FRAMEWORK = "framework"
    BASE_MODEL = "base-model"


def seed(run_seed: int, purpose: Purpose, *coordinates: int) -> int:
    """A 64-bit seed for one place of one purpose (blake2b, stable across versions and platforms)."""
    text = "/".join((str(run_seed), purpose.value, *(str(c) for c in coordinates)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def step_seed(run_seed: int, purpose: Purpose, step: int, *coordinates: int) -> int:
    """A seed within a step, which counts from 1; its coordinate is the number of steps before it."""
    return seed(run_seed, purpose, step - 1, *coordinates)


def permutation(length: int, seed_value: int) -> NDArray[np.int64]:
    """A permutation of range(length) `[length]`: places sorted by their own random key."""
    places = np.arange(length, dtype=np.uint64)
    return np.argsort(_mix(np.uint64(seed_value) + places * _GAMMA), kind="stable").astype(np.int64)


def uniforms(seeds: NDArray[np.uint64], position: int) -> NDArray[np.float64]:
    """One number in [0, 1) per seed `[B]`, for token `position` of each completion.

    SplitMix64 used as a counter-based generator (Steele, Lea, Flood 2014): the state is
    seed + (position + 1) * gamma, so nothing is carried from one token to the next.
    """
    offset = np.uint64((position + 1) * int(_GAMMA) & 0xFFFFFFFFFFFFFFFF)
    return (_mix(seeds + offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
