"""Verifiers: pure functions from task and completion to a verdict, chosen by name or import path.

A verifier may be slow, use much memory or crash, so it runs in a worker process (`pool.py`).
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, cast, runtime_checkable

from yaoki.errors import UsageError, did_you_mean
from yaoki.rewards.answers import extract_answer
from yaoki.rewards.expressions import expression_value, parse_countdown
from yaoki.rewards.math_answers import answers_equal, load_math_verify
from yaoki.types import Task, Verdict, VerdictReason


class Verifier(Protocol):
    """Judges the text of a completion that was not truncated.

    The verdict must depend on the task and the text alone. Its reward is any finite number; its reason says
    whether the answer counts as correct.
    """

    def __call__(self, task: Task, text: str) -> Verdict: ...


@runtime_checkable
class NeedsWarmUp(Protocol):
    """A verifier with slow preparations, which run before any time limit applies."""

    def warm_up(self) -> None: ...


class MathVerifier:
    """`math`: the boxed answer equals the reference as mathematics."""

    def warm_up(self) -> None:
        load_math_verify()

    def __call__(self, task: Task, text: str) -> Verdict:
        return _judge(text, lambda answer: answers_equal(task.answer, answer))


class CountdownVerifier:
    """`countdown`: the boxed expression has the target's value and uses each number exactly once."""

    def __call__(self, task: Task, text: str) -> Verdict:
        numbers, target = parse_countdown(task.answer)

        def hits_target(answer: str) -> bool:
            found = expression_value(answer)
            return found is not None and found[0] == target and sorted(found[1]) == sorted(numbers)

        return _judge(text, hits_target)


VERIFIERS: Mapping[str, Callable[[], Verifier]] = MappingProxyType(
    {"math": MathVerifier, "countdown": CountdownVerifier}
)


def load_verifier(spec: str) -> Verifier:
    """A built-in verifier by name, or `package.module:attribute`: a class without arguments, or a function.

    UsageError if there is none. Other exceptions of the user's module than ImportError are passed on.
    """
    if spec in VERIFIERS:
        return VERIFIERS[spec]()
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(
            f"there is no verifier {spec!r}",
            hint=f"{did_you_mean(spec, VERIFIERS)}; or your own as package.module:attribute",
        )
    try:
        found: object = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"the verifier {spec!r} cannot be imported: {error}",
            hint="the module must be installed, on PYTHONPATH or in the current directory",
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise UsageError(f"the verifier {spec!r}: there is no {name!r}", hint=did_you_mean(name, public))
        found = getattr(found, name)
    verifier = _instance(found, spec)
    if not callable(verifier):
        raise UsageError(
            f"the verifier {spec!r} is a {type(verifier).__name__}, which cannot be called",
            hint="it must be called as verifier(task, text) and return a yaoki.types.Verdict",
        )
    return cast(Verifier, verifier)


def _instance(found: object, spec: str) -> object:
    if not isinstance(found, type):
        return found
    try:
        return found()
    except TypeError as error:
        raise UsageError(
            f"the verifier {spec!r} cannot be made without arguments: {error}",
            hint="give the path of a class without required arguments, or of an instance",
        ) from error


def _judge(text: str, is_correct: Callable[[str], bool]) -> Verdict:
    answer = extract_answer(text)
    if answer is None:
        return Verdict(reward=0.0, reason=VerdictReason.NO_ANSWER)
    if is_correct(answer):
        return Verdict(reward=1.0, reason=VerdictReason.CORRECT, extracted=answer)
    return Verdict(reward=0.0, reason=VerdictReason.WRONG, extracted=answer)
