"""Prompt templates: two built-in ones, or a user's Jinja file."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yaoki.errors import UsageError, did_you_mean
from yaoki.types import Task

_ORZ = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with "
    "the answer. The reasoning process and answer are enclosed within <think> </think> and "
    "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. "
    "User: You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. "
    "And your final answer will be extracted automatically by the \\boxed{} tag.\n"
    "This is the problem:\n{{ problem }}\nAssistant: <think>"
)
"""The prompt of Open-Reasoner-Zero (the paper's Table 1)."""

TEMPLATES: Mapping[str, str] = MappingProxyType({"orz": _ORZ, "short": "{{ problem }}<think>"})


class Template:
    """A compiled template with one variable, `problem`, rendered in Jinja's sandbox."""

    def __init__(self, name: str, source: str) -> None:
        """`name` appears in error messages. UsageError for bad syntax or other variables."""
        self.name = name
        self.source = source
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
        del environment.filters["random"], environment.globals["lipsum"]  # prompts are not random
        try:
            variables = meta.find_undeclared_variables(environment.parse(source))
            code = environment.compile(source, name=name, filename=name)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(
                f"template {name}, line {error.lineno}: {error.message}", hint="fix the Jinja syntax"
            ) from error
        if variables != {"problem"}:
            unknown = ", ".join(sorted(variables - {"problem"}))
            what = f"uses {unknown}, which does not exist" if unknown else "does not mention the problem"
            raise UsageError(
                f"template {name} {what}", hint="its only variable is the task's text: {{ problem }}"
            )
        self._template = environment.template_class.from_code(environment, code, environment.globals)

    def render(self, task: Task) -> str:
        """The prompt's text. The problem is inserted verbatim; Jinja syntax in it has no effect."""
        try:
            return self._template.render(problem=task.problem)
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == self.name]
            where = f", line {lines[-1]}" if lines else ""
            raise UsageError(
                f"template {self.name}{where}: {error}", hint="the template fails on a task's text"
            ) from error


def load_template(spec: str) -> Template:
    """A built-in template by name (`orz`, `short`), or the Jinja file at a path. UsageError otherwise."""
    if spec in TEMPLATES:
        return Template(spec, TEMPLATES[spec])
    path = Path(spec)
    if not path.is_file():
        raise UsageError(
            f"there is no template {spec!r}: neither a built-in one nor a file",
            hint=did_you_mean(spec, TEMPLATES),
        )
    try:
        return Template(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"template {spec} cannot be read: {error}", hint="it must be UTF-8 text") from error
