"""Exact value of an arithmetic expression with + - * / and parentheses, from text that may be hostile.

Parsed by Python's own parser; only the four operators on non-negative integers are evaluated. There is no
power and no unary sign, so a value is never much longer than its text.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

MAX_EXPRESSION_CHARS = 200

_SIGNS = MappingProxyType({"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": ""})
_ALLOWED = re.compile(r"[-+*/()\d ]*", re.ASCII)
_NUMBER = re.compile(r"\d+")
_MAX_DIGITS = 9
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
)


def expression_value(text: str) -> tuple[Fraction, list[int]] | None:
    """Value and numbers (in order of use) of an expression, which may use LaTeX's \\times, \\cdot, \\div.

    None if it is no expression, divides by zero or is longer than MAX_EXPRESSION_CHARS.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        return None
    for word, sign in _SIGNS.items():
        text = text.replace(word, sign)
    text = re.sub(r"\s", " ", text.rstrip(), flags=re.ASCII).lstrip(" ")
    numbers = _NUMBER.findall(text)
    if not _ALLOWED.fullmatch(text) or any(len(number) > _MAX_DIGITS for number in numbers):
        return None
    plain = _NUMBER.sub(lambda number: str(int(number[0])), text)  # Python refuses leading zeros
    try:
        value = _evaluate(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return value, [int(number) for number in numbers]


def parse_countdown(answer: str) -> tuple[list[int], int]:
    """Numbers and target of a Countdown task's answer: `3 5 8 -> 43` is ([3, 5, 8], 43).

    ValueError if it is not of that form.
    """
    numbers, arrow, target = answer.partition("->")
    if not arrow or not numbers.strip():
        raise ValueError(f"a countdown answer looks like '3 5 8 -> 43', not {answer[:100]!r}")
    return [int(number) for number in numbers.split()], int(target)


def _evaluate(node: ast.expr) -> Fraction:
    """ValueError for anything but integers and the four operators; ZeroDivisionError."""
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left, kind, right) if type(kind) in _OPERATORS:
            value: Fraction = _OPERATORS[type(kind)](_evaluate(left), _evaluate(right))
            return value
    raise ValueError(f"not arithmetic: {ast.dump(node)}")
