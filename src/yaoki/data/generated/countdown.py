r"""Task family: Countdown. `3 5 8 -> 43` asks for 43 from 3, 5 and 8, each used exactly once.

The reference answer repeats numbers and target, which is all that a verifier needs: any expression
with that value is right.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from yaoki.rewards.expressions import parse_countdown
from yaoki.seeding import Draws
from yaoki.types import Task, make_task

_NUM_CANDIDATES = 12

_Chain = tuple[tuple[int, ...], tuple[str, ...]]
"""The numbers in some order, and the signs between them."""


@dataclass(frozen=True)
class Countdown:
    """`min_numbers` to `max_numbers` small numbers and a target that a chain of + - * reaches."""

    min_numbers: int = 3
    max_numbers: int = 4
    max_number: int = 10
    max_target: int = 99

    @property
    def name(self) -> str:
        return "countdown"

    def task(self, seed_value: int) -> Task:
        """The task of a seed, which never changes. Numbers are sorted, as their order has no meaning."""
        draws = Draws(seed_value)
        count = self.min_numbers + draws.below(self.max_numbers - self.min_numbers + 1)
        numbers = [1 + draws.below(self.max_number) for _ in range(count)]
        target = numbers[0]
        for number in numbers[1:]:
            turn = draws.below(3)
            values = [_apply(target, sign, number) for sign in ("+-*"[turn:] + "+-*"[:turn])]
            target = next(value for value in values if 1 <= value <= self.max_target)
        problem = f"{' '.join(str(number) for number in sorted(numbers))} -> {target}"
        return make_task(problem, problem, self.name)

    def worked_solution(self, task: Task, mistake_seed: int | None = None) -> str:
        """The text that follows a prompt ending in `<think>`; with a mistake seed, one step goes wrong.

        The wrong solution is the nearest of a few chains that miss the target; its last step claims to hit
        it, and its expression is the chain's, so the answer is wrong.
        """
        numbers, target = parse_countdown(task.answer)
        if mistake_seed is None:
            chain = next(chain for chain in _chains(numbers) if _values(chain)[-1] == target)
            return _written(chain, target)
        draws = Draws(mistake_seed, stream=1)
        drawn = [_random_chain(numbers, draws) for _ in range(_NUM_CANDIDATES)]
        misses = [chain for chain in drawn if min(_values(chain)) >= 1 and _values(chain)[-1] != target]
        if not misses:
            misses = [next(chain for chain in _chains(numbers) if _values(chain)[-1] != target)]
        return _written(min(misses, key=lambda chain: abs(_values(chain)[-1] - target)), target)


def _apply(value: int, sign: str, number: int) -> int:
    if sign == "+":
        return value + number
    return value - number if sign == "-" else value * number


def _chains(numbers: list[int]) -> Iterator[_Chain]:
    """Every order of the numbers with every choice of signs whose partial results stay positive."""
    for order in itertools.permutations(numbers):
        for signs in itertools.product("+-*", repeat=len(order) - 1):
            if min(_values((order, signs))) >= 1:
                yield order, signs


def _random_chain(numbers: list[int], draws: Draws) -> _Chain:
    """A random order (Fisher-Yates) with random signs."""
    order = list(numbers)
    for last in range(len(order) - 1, 0, -1):
        other = draws.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return tuple(order), tuple("+-*"[draws.below(3)] for _ in order[1:])


def _values(chain: _Chain) -> list[int]:
    """The partial results of a chain, from the left; the last one is its value."""
    order, signs = chain
    values = [order[0]]
    for sign, number in zip(signs, order[1:], strict=True):
        values.append(_apply(values[-1], sign, number))
    return values


def _written(chain: _Chain, claimed: int) -> str:
    """The steps of a chain and its expression in the answer tags; the last step claims to give `claimed`."""
    order, signs = chain
    values = [*_values(chain)[:-1], claimed]
    thoughts = []
    expression = str(order[0])
    for place, (sign, number) in enumerate(zip(signs, order[1:], strict=True)):
        thoughts.append(f"{values[place]}{sign}{number}={values[place + 1]}")
        if sign == "*" and place > 0 and signs[place - 1] != "*":
            expression = f"({expression})"
        expression += f"{sign}{number}"
    return f"{','.join(thoughts)}</think><answer>\\boxed{{{expression}}}</answer>"
