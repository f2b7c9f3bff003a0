r"""Task family: chains of additions and subtractions, `47+8-3=` with the answer `52`.

A worked solution takes one step at a time from the left, which a tiny model can learn:
`55-3=52</think><answer>\boxed{52}</answer>`.
"""

import re
from dataclasses import dataclass

from yaoki.seeding import Draws
from yaoki.types import Task, make_task

_STEP = re.compile(r"([+-])(\d+)")


@dataclass(frozen=True)
class Arithmetic:
    """A two-digit number, then `num_terms - 1` of one digit; every partial result has two digits."""

    num_terms: int = 3
    min_value: int = 10
    max_value: int = 99
    min_term: int = 2
    max_term: int = 9

    @property
    def name(self) -> str:
        return "arithmetic"

    def task(self, seed_value: int) -> Task:
        """The task of a seed, which never changes."""
        draws = Draws(seed_value)
        value = self.min_value + draws.below(self.max_value - self.min_value + 1)
        problem = str(value)
        for _ in range(self.num_terms - 1):
            sign = "+-"[draws.below(2)]
            term = self.min_term + draws.below(self.max_term - self.min_term + 1)
            if not self.min_value <= _apply(value, sign, term) <= self.max_value:
                sign = "+" if sign == "-" else "-"
            value = _apply(value, sign, term)
            problem += f"{sign}{term}"
        return make_task(problem + "=", str(value), self.name)

    def worked_solution(self, task: Task, mistake_seed: int | None = None) -> str:
        """The text that follows a prompt ending in `<think>`; with a mistake seed, one step goes wrong.

        The wrong step is off by one or by ten (a missed carry or borrow twice as often), or has its sign
        swapped; the steps after it follow from it, so the final answer is wrong as well.
        """
        first, steps = _parse(task.problem)
        values = _partial_results(first, steps)
        if mistake_seed is not None:
            draws = Draws(mistake_seed, stream=1)
            place = draws.below(len(steps))
            wrong = _wrong_values(first, steps, values, place)
            slip = wrong[draws.below(len(wrong))]
            values = [*values[:place], slip, *_partial_results(slip, steps[place + 1 :])]
        thoughts = [str(values[0])]
        for place, value in enumerate(values[1:], start=1):
            rest = "".join(f"{sign}{term}" for sign, term in steps[place:])
            thoughts.append(f"{rest}={value}")
        return f"{''.join(thoughts)}</think><answer>\\boxed{{{values[-1]}}}</answer>"


def _parse(problem: str) -> tuple[int, list[tuple[str, int]]]:
    """`47+38-12=` -> 47, [("+", 38), ("-", 12)]"""
    first = re.match(r"\d+", problem)
    if first is None:
        raise ValueError(f"not an arithmetic problem: {problem!r}")
    return int(first[0]), [(sign, int(term)) for sign, term in _STEP.findall(problem)]


def _apply(value: int, sign: str, term: int) -> int:
    return value + term if sign == "+" else value - term


def _partial_results(value: int, steps: list[tuple[str, int]]) -> list[int]:
    results = []
    for sign, term in steps:
        value = _apply(value, sign, term)
        results.append(value)
    return results


def _wrong_values(first: int, steps: list[tuple[str, int]], values: list[int], place: int) -> list[int]:
    """Plausible wrong results at step `place`, without those that make a later result negative."""
    before = first if place == 0 else values[place - 1]
    sign, term = steps[place]
    right = values[place]
    slips = [right + 1, right - 1, right + 10, right - 10]
    if sign == "+" and before % 10 + term % 10 >= 10:
        slips.append(right - 10)
    if sign == "-" and before % 10 < term % 10:
        slips.append(right + 10)
    slips.append(_apply(before, "-" if sign == "+" else "+", term))
    rest = steps[place + 1 :]
    return [slip for slip in slips if slip != right and min([slip, *_partial_results(slip, rest)]) >= 0]
