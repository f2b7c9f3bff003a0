from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.data.dataset import FamilyTasks, FileTasks, TaskSource
from yaoki.data.files import read_tasks
from yaoki.data.generated.arithmetic import Arithmetic
from yaoki.data.generated.countdown import Countdown
from yaoki.data.prompts import LoaderState, PromptLoader, drop_long, make_prompt
from yaoki.data.templates import load_template
from yaoki.errors import DataError
from yaoki.types import Prompt, Task, make_task, tasks_digest

SHORT = load_template("short")
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def some_tasks(num_tasks: int) -> tuple[Task, ...]:
    return tuple(make_task(f"problem {number}", str(number), "file") for number in range(num_tasks))


def file_tasks(num_tasks: int, run_seed: int = 1) -> FileTasks:
    tasks = some_tasks(num_tasks)
    return FileTasks(tasks, tasks_digest(tasks), run_seed)


def loader(source: TaskSource, num_prompts: int, max_prompt_tokens: int = 100) -> PromptLoader:
    return PromptLoader(source, SHORT, encode, num_prompts, max_prompt_tokens)


def served(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.task.problem for prompt in prompts]


def test_file_tasks_shuffle_anew_every_epoch_and_by_seed():
    source = file_tasks(50)
    epochs = [[source.training_task(epoch, place) for place in range(50)] for epoch in range(3)]
    assert all(set(epoch) == set(some_tasks(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(some_tasks(50))
    other = file_tasks(50, run_seed=2)
    assert [other.training_task(0, place) for place in range(50)] != epochs[0]
    # Any place can be asked for at any time.
    assert source.training_task(0, 7) == epochs[0][7]


def test_the_order_of_a_seed_never_changes():
    source = file_tasks(10)
    assert [int(source.training_task(0, place).answer) for place in range(10)] == [
        8,
        7,
        9,
        4,
        6,
        0,
        1,
        3,
        5,
        2,
    ]
    assert [int(source.training_task(1, place).answer) for place in range(10)] == [
        9,
        2,
        3,
        4,
        5,
        0,
        7,
        8,
        1,
        6,
    ]


def test_a_family_source_is_as_long_as_asked_and_repeats_itself():
    source = FamilyTasks(Arithmetic(), run_seed=1, tasks_per_epoch=20)
    assert source.num_tasks == 20
    assert source.training_task(3, 2).problem == "79-7+3="
    assert source.training_task(3, 2) == source.training_task(3, 2) != source.training_task(2, 3)


def test_a_digest_tells_families_and_their_settings_apart():
    sources = [
        FamilyTasks(Arithmetic(), 1, 20),
        FamilyTasks(Arithmetic(num_terms=4), 1, 20),
        FamilyTasks(Countdown(), 1, 20),
        FamilyTasks(Arithmetic(), 1, 21),
    ]
    assert len({source.digest for source in sources}) == 4
    assert FamilyTasks(Arithmetic(), 1, 20).digest == sources[0].digest


def test_a_prompt_is_template_and_tokens():
    prompt = make_prompt(some_tasks(1)[0], SHORT, encode)
    assert prompt.text == "problem 0<think>"
    assert prompt.token_ids == tuple(encode(prompt.text))


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 5))
def test_every_task_is_served_exactly_once_an_epoch(num_tasks, num_prompts, run_seed):
    batches = loader(file_tasks(num_tasks, run_seed), num_prompts)
    row: list[str] = []
    num_epochs = 4
    while len(row) < num_epochs * num_tasks:
        batch = batches.next_batch()
        assert len(batch) == num_prompts
        row += served(batch)
        state = batches.state()
        assert 0 <= state.cursor < num_tasks
        assert state.epoch * num_tasks + state.cursor == len(row)
    for epoch in range(num_epochs):
        counts = Counter(row[epoch * num_tasks : (epoch + 1) * num_tasks])
        assert set(counts.values()) == {1}
        assert len(counts) == num_tasks


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 8))
def test_a_restored_loader_goes_on_as_if_nothing_had_happened(num_tasks, num_prompts, num_before):
    unbroken = loader(file_tasks(num_tasks), num_prompts)
    for _ in range(num_before):
        unbroken.next_batch()
    resumed = loader(file_tasks(num_tasks), num_prompts)
    resumed.restore(unbroken.state())
    for _ in range(4):
        assert resumed.next_batch() == unbroken.next_batch()
        assert resumed.state() == unbroken.state()


def test_at_the_end_of_an_epoch_the_state_is_the_next_ones_beginning():
    batches = loader(file_tasks(6), 3)
    states = []
    for _ in range(4):
        batches.next_batch()
        states.append(batches.state())
    assert states == [LoaderState(0, 3), LoaderState(1, 0), LoaderState(1, 3), LoaderState(2, 0)]


@pytest.mark.parametrize("state", [LoaderState(0, 6), LoaderState(0, -1), LoaderState(-1, 0)])
def test_there_is_no_such_place(state):
    batches = loader(file_tasks(6), 3)
    with pytest.raises(DataError, match="the dataset has 6 tasks") as caught:
        batches.restore(state)
    assert caught.value.hint
    assert batches.state() == LoaderState(0, 0)


def test_a_long_prompt_is_refused_and_the_position_kept():
    fits = len("47+8-2=<think>")
    source = FamilyTasks(Arithmetic(), 1, 100)
    assert len(loader(source, 4, fits).next_batch()) == 4
    batches = loader(source, 4, fits - 1)
    with pytest.raises(
        DataError, match=f"has {fits} tokens, more than data.max_prompt_tokens={fits - 1}"
    ) as caught:
        batches.next_batch()
    assert caught.value.hint
    assert batches.state() == LoaderState(0, 0)


def test_nothing_to_serve_is_refused():
    for num_tasks, num_prompts in ((0, 1), (1, 0)):
        with pytest.raises(DataError, match="must be positive"):
            loader(file_tasks(num_tasks), num_prompts)


def test_long_prompts_are_dropped_and_counted_never_cut():
    tasks = [make_task("x" * length, "1", "file") for length in (5, 30, 10, 11, 1)]
    kept, num_dropped = drop_long(tasks, SHORT, encode, 10 + len("<think>"), num_prompts=2)
    assert [len(task.problem) for task in kept] == [5, 10, 1]
    assert num_dropped == 2


@pytest.mark.parametrize(("limit", "num_prompts"), [(5, 1), (5, 0), (100, 4)])
def test_too_few_tasks_left_is_refused(limit, num_prompts):
    with pytest.raises(DataError, match="tasks are left") as caught:
        drop_long(some_tasks(3), SHORT, encode, limit, num_prompts)
    assert caught.value.hint


@pytest.mark.skipif(not REAL.is_dir(), reason="the real datasets are not beside the repository")
def test_real_problems_all_the_way():
    loaded = read_tasks(
        [REAL / "orz_math_2k.json"],
        format="auto",
        problem_column="problem",
        answer_column="answer",
        on_bad_row="error",
    )
    template = load_template("orz")
    kept, num_dropped = drop_long(loaded.tasks, template, encode, 2000, 128)
    assert num_dropped > 0
    assert len(kept) + num_dropped == 2028
    batches = PromptLoader(FileTasks(kept, tasks_digest(loaded.tasks), 1), template, encode, 128, 2000)
    uids = Counter(prompt.task.uid for _ in range(len(kept) // 128) for prompt in batches.next_batch())
    assert uids <= Counter(task.uid for task in kept)
