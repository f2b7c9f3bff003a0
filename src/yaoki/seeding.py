"""Randomness by coordinates: every random choice is a pure function of the run's seed and a place.

No generator has a position that a crash could lose: the seed of a completion depends on the run's
seed, the purpose and (step, prompt, sample) alone; the number that picks its token t depends on
that seed and t alone. Small because everything else depends on it.
"""

import hashlib
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15
_STREAM = 0xD1B54A32D192ED03

_Word = TypeVar("_Word", int, NDArray[np.uint64])


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
    keys = _mix(np.uint64(seed_value) + places * np.uint64(_GAMMA))
    return np.argsort(keys, kind="stable").astype(np.int64)


def uniforms(seeds: NDArray[np.uint64], position: int) -> NDArray[np.float64]:
    """One number in [0, 1) per seed `[B]`, for token `position` of each completion.

    SplitMix64 used as a counter-based generator (Steele, Lea, Flood 2014): the state is
    seed + (position + 1) * gamma, so nothing is carried from one token to the next.
    """
    offset = np.uint64((position + 1) * _GAMMA & _MASK)
    return (_mix(seeds + offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Draws:
    """The numbers that `uniforms` gives for one seed (in stream 0), one after the other.

    In plain integers, as numpy costs ten times as much for a single number. For generating one task; never
    part of a run's state.
    """

    def __init__(self, seed_value: int, stream: int = 0) -> None:
        """Streams of one seed are unrelated, so that a task and a mistake in it may share a seed."""
        self._state = (seed_value ^ (stream * _STREAM)) & _MASK

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        self._state = (self._state + _GAMMA) & _MASK
        return (_mix(self._state) >> 11) * 2.0**-53

    def below(self, limit: int) -> int:
        """The next integer in [0, limit), for limits far below 2**53."""
        return int(self.uniform() * limit)


def _mix(z: _Word) -> _Word:
    """SplitMix64's finaliser, of one integer or of each in an array."""
    word: Any = z  # numpy's stubs take Python's integers for signed ones
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    mixed: _Word = word ^ (word >> 31)
    return mixed
