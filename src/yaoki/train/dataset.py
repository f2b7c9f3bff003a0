"""The data of a run, from its config: training tasks and held-out prompts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from yaoki.config.schema import Config
from yaoki.data.dataset import FamilyTasks, FileTasks, TaskSource
from yaoki.data.files import read_tasks
from yaoki.data.generated.families import family, held_out_tasks
from yaoki.data.prompts import PromptLoader, drop_long, make_prompt
from yaoki.data.templates import Template, load_template
from yaoki.train.console import Console
from yaoki.types import Prompt, Task, tasks_digest


class Tasks:
    """Reads, templates and tokenises the tasks that the config names."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
        self._config = config
        self._console = console
        self._tokenizer = tokenizer
        self._template: Template = load_template(config.data.template)

    def loader(self, source: TaskSource) -> PromptLoader:
        """Serves the prompts of a training source, from the beginning."""
        return PromptLoader(
            source,
            self._template,
            self._encode,
            self._config.train.num_prompts,
            self._config.data.max_prompt_tokens,
        )

    def eval_prompts(self) -> list[Prompt]:
        """The first `eval.num_tasks` held-out prompts that are not too long."""
        config = self._config
        tasks: tuple[Task, ...] = ()
        if config.eval.files:
            tasks = self._fitting(self._read(config.eval.files), 1)
        elif config.data.family:
            tasks = held_out_tasks(family(config.data.family), config.eval.num_tasks)
        return [make_prompt(t, self._template, self._encode) for t in tasks[: config.eval.num_tasks]]

    def training_source(self) -> TaskSource:
        """The training tasks whose prompts are not too long; its digest changes when any of them does."""
        config = self._config
        if config.data.family:
            tasks = family(config.data.family)
            return FamilyTasks(tasks, config.train.seed, config.data.tasks_per_epoch)
        loaded = self._read(config.data.files)
        kept = self._fitting(loaded, config.train.num_prompts)
        return FileTasks(kept, tasks_digest(kept), config.train.seed)

    def digest(self, source: TaskSource, held_out: Sequence[Prompt], model_folder: Path) -> str:
        """Digest of everything that prompts depend on: tasks, template, tokenizer; and of the model's
        config."""
        evaluation = tasks_digest(prompt.task for prompt in held_out)
        text = f"{source.digest}\0{evaluation}\0{self._template.source}"
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for path in sorted(path for path in model_folder.rglob("*") if path.is_file()):
            digest.update(f"\0{path.relative_to(model_folder)}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def _read(self, files: tuple[Path, ...]) -> tuple[Task, ...]:
        data = self._config.data
        loaded = read_tasks(
            files,
            format=data.format,
            problem_column=data.problem_column,
            answer_column=data.answer_column,
            on_bad_row=data.on_bad_row,
        )
        names = ", ".join(str(file) for file in files)
        self._console.note(f"{names}: {len(loaded.tasks)} tasks")
        if loaded.num_skipped:
            self._console.warn(f"{loaded.num_skipped} bad rows skipped: {'; '.join(loaded.skipped)}")
        return loaded.tasks

    def _fitting(self, tasks: tuple[Task, ...], at_least: int) -> tuple[Task, ...]:
        limit = self._config.data.max_prompt_tokens
        kept, num_dropped = drop_long(tasks, self._template, self._encode, limit, at_least)
        if num_dropped:
            self._console.warn(
                f"{num_dropped} of {len(tasks)} prompts are longer than {limit} tokens: dropped"
            )
        return kept

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids
