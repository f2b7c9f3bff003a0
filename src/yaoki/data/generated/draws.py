"""A few integers from one seed, fast enough for generating tasks by the hundred thousand.

The numbers (of stream 0) are those of `yaoki.seeding.uniforms` (SplitMix64, Steele, Lea, Flood 2014),
taken one after the other in plain Python: numpy costs ten times as much for a single number. An object
of this class lives as long as one task; it is never part of a run's state.
"""

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15
_STREAM = 0xD1B54A32D192ED03


class Draws:
    """The uniform numbers of one seed, in order."""

    def __init__(self, seed_value: int, stream: int = 0) -> None:
        """Streams of one seed are unrelated, so that a task and a mistake in it may share a seed."""
        self._state = (seed_value ^ (stream * _STREAM)) & _MASK

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        self._state = (self._state + _GAMMA) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    def below(self, limit: int) -> int:
        """The next integer in [0, limit), for limits far below 2**53."""
        return int(self.uniform() * limit)
