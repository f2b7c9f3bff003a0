import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki import seeding
from yaoki.data.generated.arithmetic import Arithmetic
from yaoki.data.generated.countdown import Countdown
from yaoki.data.generated.families import (
    FAMILIES,
    TaskFamily,
    family,
    held_out_task,
    held_out_tasks,
    is_held_out,
    training_task,
)
from yaoki.errors import DataError, UsageError
from yaoki.rewards.answers import extract_answer, has_format
from yaoki.rewards.expressions import expression_value
from yaoki.rewards.verifiers import load_verifier
from yaoki.seeding import Draws
from yaoki.types import Task, make_task

seeds = st.integers(0, 2**64 - 1)
BUILT_IN = [
    Arithmetic(),
    Arithmetic(num_terms=5, min_value=0, max_value=40, min_term=0, max_term=20),
    Countdown(),
]


def test_draws_are_the_uniforms_of_seeding():
    for seed_value in (0, 1, 2**64 - 1):
        draws = Draws(seed_value)
        wanted = [float(seeding.uniforms(np.array([seed_value], np.uint64), t)[0]) for t in range(5)]
        assert [draws.uniform() for _ in range(5)] == wanted


def test_streams_of_draws_never_change():
    assert [Draws(5).below(1000), Draws(5, stream=1).below(1000)] == [386, 165]
    draws = Draws(2**64 - 1)
    assert {draws.below(3) for _ in range(100)} == {0, 1, 2}


# Runs are resumed by seeds alone: what a seed gives is part of the run format.
@pytest.mark.parametrize(
    ("name", "seed_value", "problem", "answer", "solution", "mistaken"),
    [
        ("arithmetic", 0, "89+2-2=", "89", r"91-2=89</think><answer>\boxed{89}</answer>",
         r"81-2=79</think><answer>\boxed{79}</answer>"),
        ("arithmetic", 1, "60-9+5=", "56", r"51+5=56</think><answer>\boxed{56}</answer>",
         r"61+5=66</think><answer>\boxed{66}</answer>"),
        ("arithmetic", 2**64 - 1, "90-3+7=", "94", r"87+7=94</think><answer>\boxed{94}</answer>",
         r"97+7=104</think><answer>\boxed{104}</answer>"),
        ("countdown", 0, "1 2 5 10 -> 32", "1 2 5 10 -> 32",
         r"1+5=6,6+10=16,16*2=32</think><answer>\boxed{(1+5+10)*2}</answer>",
         r"1*5=5,5-2=3,3*10=32</think><answer>\boxed{(1*5-2)*10}</answer>"),
        ("countdown", 2**64 - 1, "3 5 8 10 -> 43", "3 5 8 10 -> 43",
         r"3*10=30,30+5=35,35+8=43</think><answer>\boxed{3*10+5+8}</answer>",
         r"10+8=18,18*3=54,54+5=43</think><answer>\boxed{(10+8)*3+5}</answer>"),
    ],
)  # fmt: skip
def test_what_a_seed_gives_never_changes(name, seed_value, problem, answer, solution, mistaken):
    tasks = family(name)
    task = tasks.task(seed_value)
    assert (task.problem, task.answer, task.source) == (problem, answer, name)
    assert tasks.worked_solution(task) == solution
    assert tasks.worked_solution(task, 7) == mistaken


@pytest.mark.parametrize(
    ("name", "training", "later", "held_out"),
    [
        ("arithmetic", ["42-6-2=", "13-2+9=", "48+3+2="], "79-7+3=",
         ["90-7+6=", "53+8-4=", "69-4-7="]),
        ("countdown", ["1 2 6 -> 11", "1 2 4 5 -> 14", "2 3 4 -> 18"], "5 6 8 10 -> 8",
         ["2 6 7 7 -> 72", "1 1 2 5 -> 6", "3 6 7 8 -> 18"]),
    ],
)  # fmt: skip
def test_what_a_place_holds_never_changes(name, training, later, held_out):
    tasks = family(name)
    assert [training_task(tasks, 1, 0, index).problem for index in range(3)] == training
    assert training_task(tasks, 1, 3, 2).problem == later
    assert [task.problem for task in held_out_tasks(tasks, 3)] == held_out


@pytest.mark.parametrize("tasks", BUILT_IN, ids=repr)
@given(seed_value=seeds, mistake_seed=seeds)
def test_worked_solutions_are_right_and_mistakes_are_wrong(tasks: TaskFamily, seed_value, mistake_seed):
    task = tasks.task(seed_value)
    verifier = load_verifier("countdown" if tasks.name == "countdown" else "math")
    right, wrong = tasks.worked_solution(task), tasks.worked_solution(task, mistake_seed)
    assert verifier(task, right).reward == 1
    assert verifier(task, wrong).reward == 0
    assert has_format(right)
    assert has_format(wrong)
    assert re.sub(r"\d+", "", right.partition("</think>")[2]).startswith("<answer>\\boxed{")
    assert "-" not in re.findall(r"=(-?)\d", right + wrong)
    assert wrong == tasks.worked_solution(task, mistake_seed)


@given(seeds)
def test_arithmetic_is_right_and_keeps_to_two_digits(seed_value):
    task = Arithmetic().task(seed_value)
    terms = re.fullmatch(r"([1-9]\d)([+-][2-9])([+-][2-9])=", task.problem)
    assert terms is not None
    values = [int(term) for term in terms.groups()]
    assert 10 <= values[0] + values[1] <= 99
    assert 10 <= int(task.answer) == sum(values) <= 99


def test_the_bounds_of_the_numbers_are_reached():
    tasks = [Arithmetic().task(seed_value) for seed_value in range(4000)]
    terms = [[int(term) for term in re.findall(r"\d+", task.problem)] for task in tasks]
    assert {first for first, *_ in terms} == {int(task.answer) for task in tasks} == set(range(10, 100))
    assert {term for _, *rest in terms for term in rest} == set(range(2, 10))
    signs = Arithmetic(num_terms=2, min_value=3, max_value=12, min_term=5, max_term=5)
    # Only the sign that stays within the bounds.
    for seed_value in range(50):
        first, sign, _ = re.fullmatch(r"(\d+)([+-])(5)=", signs.task(seed_value).problem).groups()
        assert sign == ("+" if int(first) <= 7 else "-")


@given(seeds, seeds)
def test_only_one_arithmetic_step_is_wrong(seed_value, mistake_seed):
    tasks = Arithmetic(num_terms=4)
    task = tasks.task(seed_value)
    chain = (task.problem + tasks.worked_solution(task, mistake_seed).partition("</think>")[0]).split("=")
    assert len(chain) == 4
    wrong = [
        place
        for place in range(3)
        if reckon_first_step(chain[place]) != re.match(r"\d+", chain[place + 1])[0]
    ]
    assert len(wrong) == 1


def reckon_first_step(chain: str) -> str:
    left, sign, right = re.match(r"(\d+)([+-])(\d+)", chain).groups()
    return str(int(left) + int(right) * (1 if sign == "+" else -1))


def test_mistakes_are_of_every_kind():
    tasks = Arithmetic()
    task = make_task("47+38-12=", "73", "arithmetic")
    assert tasks.worked_solution(task) == r"85-12=73</think><answer>\boxed{73}</answer>"
    answers = {extract_answer(tasks.worked_solution(task, mistake)) for mistake in range(300)}
    # First step: 84, 86, 75, 95 instead of 85 (47-38-12 would turn negative); second: off, or 85+12.
    assert answers == {"72", "74", "63", "83", "97"}


def test_adding_nothing_instead_of_taking_it_away_is_no_mistake():
    tasks = Arithmetic(min_value=0, max_value=2, min_term=0, max_term=1)
    for seed_value in range(100):
        task = tasks.task(seed_value)
        assert extract_answer(tasks.worked_solution(task, seed_value)) != task.answer


@given(seeds, seeds)
def test_a_mistaken_countdown_reckons_right_up_to_its_last_step(seed_value, mistake_seed):
    tasks = Countdown()
    task = tasks.task(seed_value)
    thoughts = tasks.worked_solution(task, mistake_seed).partition("</think>")[0].split(",")
    rights = [expression_value(step.split("=")[0])[0] == Fraction(step.split("=")[1]) for step in thoughts]
    assert rights == [True] * (len(rights) - 1) + [False]


@pytest.mark.parametrize("tasks", BUILT_IN, ids=repr)
def test_training_never_meets_the_held_out_tasks(tasks):
    held_out = {task.problem for task in held_out_tasks(tasks, 200)}
    training = {
        training_task(tasks, run_seed, 1, index).problem for run_seed in (1, 8) for index in range(300)
    }
    assert len(held_out) == 200
    assert not held_out & training
    assert all(is_held_out(problem) for problem in held_out)
    assert not any(is_held_out(problem) for problem in training)


def test_places_hold_different_tasks():
    tasks = Arithmetic()
    places = [(run_seed, epoch, index) for run_seed in (1, 2) for epoch in (0, 1) for index in range(50)]
    assert len({training_task(tasks, *place).problem for place in places}) > 190


def test_about_one_in_eight_is_held_out():
    tasks = Arithmetic()
    share = sum(is_held_out(tasks.task(seed_value).problem) for seed_value in range(4000)) / 4000
    assert 0.10 < share < 0.15


def test_held_out_tasks_are_the_same_for_everyone_and_prefixes():
    tasks = Arithmetic()
    assert held_out_tasks(tasks, 50) == held_out_tasks(tasks, 80)[:50]
    assert held_out_task(tasks, 0) == held_out_tasks(tasks, 1)[0]


class OneTask:
    """A family with a single problem."""

    name = "one"

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def task(self, seed_value: int) -> Task:
        return make_task(self._problem, "1", self.name)

    def worked_solution(self, task: Task, mistake_seed: int | None = None) -> str:
        return ""


def test_a_family_that_is_too_small_is_refused():
    problems = [str(number) for number in range(100)]
    held_out = next(problem for problem in problems if is_held_out(problem))
    trained = next(problem for problem in problems if not is_held_out(problem))
    with pytest.raises(DataError, match="only 1 distinct held-out tasks, not 2"):
        held_out_tasks(OneTask(held_out), 2)
    with pytest.raises(DataError, match="no held-out task"):
        held_out_tasks(OneTask(trained), 1)
    with pytest.raises(DataError, match="no training task"):
        training_task(OneTask(held_out), 1, 0, 0)


def test_family_by_name():
    assert [family(name).name for name in FAMILIES] == list(FAMILIES)
    with pytest.raises(UsageError, match="no task family 'arithmetics'") as caught:
        family("arithmetics")
    assert "did you mean 'arithmetic'" in (caught.value.hint or "")


def test_only_arithmetic_problems_have_arithmetic_solutions():
    with pytest.raises(ValueError, match="not an arithmetic problem"):
        Arithmetic().worked_solution(make_task("What is 1?", "1", "file"))
