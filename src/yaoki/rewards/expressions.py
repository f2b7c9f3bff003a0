"""Exact value of an arithmetic expression with + - * / and parentheses, from text that may be hostile.

No `eval`; no power and no unary sign, so a value is never much longer than its text.
"""

import re
from fractions import Fraction

MAX_EXPRESSION_CHARS = 200

_TOKEN = re.compile(r"\s*(?:(\d{1,9})(?!\d)|([-+*/()]))", re.ASCII)
_SIGNS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": ""}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def expression_value(text: str) -> tuple[Fraction, list[int]] | None:
    """Value and numbers (in order of use) of an expression, which may use LaTeX's \\times, \\cdot, \\div.

    None if it is no expression, divides by zero or is longer than MAX_EXPRESSION_CHARS.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        return None
    for word, sign in _SIGNS.items():
        text = text.replace(word, sign)
    tokens = _tokens(text.rstrip())
    if tokens is None:
        return None
    try:
        value = _evaluate(tokens)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return value, [token for token in tokens if isinstance(token, int)]


def parse_countdown(answer: str) -> tuple[list[int], int]:
    """Numbers and target of a Countdown task's answer: `3 5 8 -> 43` is ([3, 5, 8], 43).

    ValueError if it is not of that form.
    """
    numbers, arrow, target = answer.partition("->")
    if not arrow or not numbers.strip():
        raise ValueError(f"a countdown answer looks like '3 5 8 -> 43', not {answer[:100]!r}")
    return [int(number) for number in numbers.split()], int(target)


def _tokens(text: str) -> list[int | str] | None:
    """`3*(5+8)` -> [3, "*", "(", 5, "+", 8, ")"]"""
    tokens: list[int | str] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        tokens.append(int(match[1]) if match[1] else match[2])
        place = match.end()
    return tokens


def _evaluate(tokens: list[int | str]) -> Fraction:
    """Shunting-yard with two stacks; ValueError, IndexError or ZeroDivisionError if it is no expression.

    Parentheses are added around the whole expression: if they are closed too early, the next operator finds
    an empty stack.
    """
    values: list[Fraction] = []
    signs: list[str] = ["("]
    expects_value = True
    for token in [*tokens, ")"]:
        if expects_value != (isinstance(token, int) or token == "("):
            raise ValueError("two values or two operators in a row")
        if isinstance(token, int):
            values.append(Fraction(token))
            expects_value = False
        elif token == "(":
            signs.append(token)
        elif token == ")":
            while signs[-1] != "(":
                _reduce(values, signs)
            signs.pop()
        else:
            while _PRECEDENCE.get(signs[-1], 0) >= _PRECEDENCE[token]:
                _reduce(values, signs)
            signs.append(token)
            expects_value = True
    if signs:
        raise ValueError("a parenthesis is not closed")
    return values[0]


def _reduce(values: list[Fraction], signs: list[str]) -> None:
    """Replace the two topmost values by the result of the topmost operator."""
    right, left, sign = values.pop(), values.pop(), signs.pop()
    if sign == "+":
        values.append(left + right)
    elif sign == "-":
        values.append(left - right)
    else:
        values.append(left * right if sign == "*" else left / right)
