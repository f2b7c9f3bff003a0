"""Where a network's first weights come from: resolves `init_from` to a model folder or hub name.

Here the built-in base meets the task family that it is pre-trained on; nothing else knows both.
"""

import hashlib
from collections.abc import Callable

from yaoki.config.schema import Config
from yaoki.data.families import TaskFamily, family, training_task
from yaoki.data.templates import load_template
from yaoki.models.base import Example, Pretraining, tiny_base
from yaoki.rollout.engine import Poll
from yaoki.run.console import Console
from yaoki.seeding import Purpose, seed

BUILTIN_TINY = "builtin:tiny"
BUILTIN_RANDOM = "builtin:tiny-random"

_MISTAKES_PER_100 = 48
"""Share of worked solutions with a mistake: a base model knows the form better than the facts."""
_NUM_DIGESTED = 256
_BASE_SEED = 0
"""Every run starts from the same base model, whatever its own seed."""


def resolve_source(init_from: str, config: Config, console: Console, poll: Poll) -> str:
    """Folder or hub name of the model to start from; makes the built-in base if it is asked for.

    Raises what `poll` raises; then nothing is kept of a base that was being made.
    """
    if init_from == BUILTIN_RANDOM:
        return str(tiny_base(_no_example, BUILTIN_RANDOM, Pretraining(steps=0), _ignore_progress))
    if init_from != BUILTIN_TINY:
        return init_from
    plan = Pretraining()
    examples = worked_examples(family(config.data.family), config.data.template)
    digest = _examples_digest(examples)
    with console.work("pre-training the built-in base model (once, then cached)") as advance:

        def on_progress(done: int, total: int) -> None:
            advance(done, total)
            poll()

        return str(tiny_base(examples, digest, plan, on_progress))


def worked_examples(tasks: TaskFamily, template_spec: str) -> Callable[[int], Example]:
    """Prompt and worked solution number i of an endless row, some with mistakes; none is held out."""
    template = load_template(template_spec)

    def example(index: int) -> Example:
        task = training_task(tasks, _BASE_SEED, 0, index)
        slip = seed(_BASE_SEED, Purpose.BASE_MODEL, index)
        mistake_seed = slip if slip % 100 < _MISTAKES_PER_100 else None
        return template.render(task), tasks.worked_solution(task, mistake_seed)

    return example


def _examples_digest(examples: Callable[[int], Example]) -> str:
    text = "\0".join("\0".join(examples(index)) for index in range(_NUM_DIGESTED))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _no_example(index: int) -> Example:
    raise AssertionError(f"a random model reads no text, not even example {index}")


def _ignore_progress(done: int, total: int) -> None:
    """There is nothing to show."""
