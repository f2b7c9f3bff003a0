r"""Whether two mathematical answers are equal: as text, else with math-verify on sympy.

Rules beyond math-verify's own:

- Equal text (spaces and `$` aside) is equal; two integers are compared digit by digit, with or without
  thousands separators. This decides most answers without sympy.
- A list without set braces keeps its order. math-verify reads `1,2` as a set, equal to `2,1`; here they are
  equal only if one is written as a set, `\{2,1\}`, or if every item is named (`a=1, b=2`).
- Only LaTeX is parsed. math-verify's second parser extracts any number from what it cannot parse, so that
  `(1, 1, \ldots, 1)` would equal `1`.

There is no time limit: hostile answers may run forever in sympy, and the caller has to kill them.
math-verify's own limits are off, as they need signals and are long. It is imported when first needed, which
takes 0.4 s.
"""

import logging
import re

_MAX_SYMBOLIC_CHARS = 2000
"""Longer answers are compared as text only: sympy would exceed the caller's time limit."""

_INTEGER = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)", re.ASCII)
_IGNORED = re.compile(r"\s+|\\[!,;: ]|\\\$|\$")
_IN_PARENTHESES = re.compile(r"(?:\\left)?\((.*?)(?:\\right)?\)", re.DOTALL)


def load_math_verify() -> None:
    """Import math-verify now, so that its 0.4 s do not count against an answer's time limit."""
    import math_verify  # noqa: F401

    # They warn that their limits are off, and about every answer that they cannot parse.
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def answers_equal(reference: str, answer: str) -> bool:
    """Whether `answer` equals `reference`. May take any time and any memory, and raise anything."""
    decided = _equal_as_text(reference, answer)
    if decided is not None:
        return decided
    wanted, given = _ordered_items(reference), _ordered_items(answer)
    if wanted is None or given is None:
        return _equal_to_sympy(reference, answer)
    return len(wanted) == len(given) and all(
        _equal_to_sympy(*pair) if (same := _equal_as_text(*pair)) is None else same
        for pair in zip(wanted, given, strict=True)
    )


def _equal_as_text(reference: str, answer: str) -> bool | None:
    """True or False if the text decides, else None."""
    if _IGNORED.sub("", reference) == _IGNORED.sub("", answer):
        return True
    integers = _as_integer(reference), _as_integer(answer)
    if integers[0] and integers[1]:
        return integers[0] == integers[1]
    return None


def _as_integer(text: str) -> tuple[bool, str] | None:
    """Sign and digits, as text because Python refuses to convert thousands of digits; None if not an integer.

    A comma followed by a space separates items of a list, not thousands.
    """
    match = _INTEGER.fullmatch(_IGNORED.sub("", text))
    if match is None or re.search(r",\s", text):
        return None
    digits = match[2].replace(",", "").lstrip("0")
    return match[1] == "-" and digits != "", digits


def _ordered_items(text: str) -> list[str] | None:
    """Items of a list whose order matters, `1, 2` or `(1, 2)`; None for anything else."""
    text = text.strip().strip("$").strip()
    if _as_integer(text) is not None:
        return None
    items = _split_at_commas(text)
    if len(items) == 1 and (inside := _IN_PARENTHESES.fullmatch(text)):
        items = _split_at_commas(inside[1])
    if len(items) < 2 or all("=" in item for item in items):
        return None
    return items


def _split_at_commas(text: str) -> list[str]:
    """The parts between the commas outside all brackets; none if a bracket is closed too early."""
    items = []
    depth, start = 0, 0
    for match in re.finditer(r"[()\[\]{}]|(?<!\\),", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
            if depth < 0:
                return []
        elif depth == 0:
            items.append(text[start : match.start()].strip())
            start = match.end()
    return [*items, text[start:].strip()]


def _equal_to_sympy(reference: str, answer: str) -> bool:
    if max(len(reference), len(answer)) > _MAX_SYMBOLIC_CHARS:
        return False
    from math_verify import LatexExtractionConfig, parse, verify

    latex = [LatexExtractionConfig(boxed_match_priority=0)]
    gold, given = (
        parse(f"\\boxed{{{text}}}", extraction_config=latex, parsing_timeout=None)
        for text in (reference, answer)
    )
    return bool(verify(gold, given, timeout_seconds=None))
