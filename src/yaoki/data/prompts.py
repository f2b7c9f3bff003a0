"""From tasks to prompts: templated, tokenised once, served in an order whose whole state is two integers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yaoki.data.dataset import TaskSource
from yaoki.data.templates import Template
from yaoki.errors import DataError
from yaoki.types import Prompt, Task

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, special tokens included."""


@dataclass(frozen=True, slots=True)
class LoaderState:
    """Position of the next batch; `cursor` is always below the number of tasks."""

    epoch: int
    cursor: int


class PromptLoader:
    """Serves each task of the source exactly once an epoch, in batches of constant size.

    A batch that reaches the end of an epoch is filled from the beginning of the next one.
    """

    def __init__(
        self,
        source: TaskSource,
        template: Template,
        encode: Encode,
        num_prompts: int,
        max_prompt_tokens: int,
    ) -> None:
        if source.num_tasks < 1 or num_prompts < 1:
            raise DataError(
                f"{num_prompts} prompts a batch from {source.num_tasks} tasks: both must be positive"
            )
        self._source = source
        self._template = template
        self._encode = encode
        self._num_prompts = num_prompts
        self._max_prompt_tokens = max_prompt_tokens
        self._state = LoaderState(epoch=0, cursor=0)

    def next_batch(self) -> list[Prompt]:
        """The next `num_prompts` prompts.

        DataError, with the position unchanged, if one is longer than `max_prompt_tokens`: prompts are
        never truncated, and long ones from files are dropped before training (`drop_long`).
        """
        epoch, cursor = self._state.epoch, self._state.cursor
        prompts = []
        for _ in range(self._num_prompts):
            prompts.append(self._prompt(self._source.training_task(epoch, cursor)))
            cursor += 1
            if cursor == self._source.num_tasks:
                epoch, cursor = epoch + 1, 0
        self._state = LoaderState(epoch, cursor)
        return prompts

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._state.epoch

    def state(self) -> LoaderState:
        return self._state

    def restore(self, state: LoaderState) -> None:
        """Continue from the state of a loader of the same source. DataError if it is out of range."""
        if state.epoch < 0 or not 0 <= state.cursor < self._source.num_tasks:
            raise DataError(
                f"cannot continue at task {state.cursor} of epoch {state.epoch}: "
                f"the dataset has {self._source.num_tasks} tasks",
                hint="resume with the dataset that the run was started with",
            )
        self._state = state

    def _prompt(self, task: Task) -> Prompt:
        prompt = make_prompt(task, self._template, self._encode)
        if len(prompt.token_ids) > self._max_prompt_tokens:
            raise DataError(
                f"the prompt of task {task.uid} ({task.source}) has {len(prompt.token_ids)} tokens, "
                f"more than data.max_prompt_tokens={self._max_prompt_tokens}",
                hint="raise data.max_prompt_tokens or choose a shorter data.template",
            )
        return prompt


def make_prompt(task: Task, template: Template, encode: Encode) -> Prompt:
    """The templated and tokenised task, of any length."""
    text = template.render(task)
    return Prompt(task=task, text=text, token_ids=tuple(encode(text)))


def drop_long(
    tasks: Sequence[Task], template: Template, encode: Encode, max_prompt_tokens: int, num_prompts: int
) -> tuple[tuple[Task, ...], int]:
    """The tasks whose prompts fit, in order, and the number of dropped ones. Called before training.

    DataError if the rest does not fill one batch of `num_prompts`.
    """
    kept = tuple(task for task in tasks if len(encode(template.render(task))) <= max_prompt_tokens)
    num_dropped = len(tasks) - len(kept)
    if len(kept) < max(num_prompts, 1):
        raise DataError(
            f"only {len(kept)} of {len(tasks)} tasks are left for batches of {num_prompts} prompts: "
            f"{num_dropped} are longer than data.max_prompt_tokens={max_prompt_tokens}",
            hint="raise data.max_prompt_tokens, lower train.num_prompts, or give more data",
        )
    return kept, num_dropped
