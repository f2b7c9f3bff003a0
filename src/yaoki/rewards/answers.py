r"""The answer in a completion: the last `<answer> ... \boxed{...} ... </answer>`.

Completions are hostile as a matter of course (training rewards whatever gets past this module), so
every search here is linear in the text, without recursion and without backtracking. What an answer
means, and whether it is right, is not known here.
"""

import re
from collections.abc import Iterator

_OPEN, _CLOSE = "<answer>", "</answer>"
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACES = re.compile(r"(?:\\[\\{}])+|\{+|\}+")
"""A run of escaped characters (`\\{` is a printed brace), of opening braces, or of closing ones."""


def extract_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` with balanced braces holds, in the last answer block that has one.

    None if no complete block has one, or if it is blank. Outer spaces are stripped.
    """
    for block in _blocks_from_the_end(text):
        boxed = _last_boxed(block)
        if boxed is not None:
            return boxed.strip() or None
    return None


def has_format(text: str) -> bool:
    """Whether a completion (of a prompt that ends in `<think>`) has exactly the form that was asked for.

    That is: thoughts, `</think>`, and one answer block that holds an answer, with nothing else after
    the thoughts but space.
    """
    _, _, rest = text.partition("</think>")
    rest = rest.strip()
    is_one_block = rest.startswith(_OPEN) and rest.endswith(_CLOSE) and rest.count(_OPEN) == 1
    return is_one_block and rest.count(_CLOSE) == 1 and extract_answer(rest) is not None


def _blocks_from_the_end(text: str) -> Iterator[str]:
    """Contents of the answer blocks, last first. Each character is looked at a fixed number of times."""
    end = text.rfind(_CLOSE)
    while end >= 0:
        start = text.rfind(_OPEN, 0, end)
        if start < 0:
            return
        yield text[start + len(_OPEN) : end]
        end = text.rfind(_CLOSE, 0, start)


def _last_boxed(block: str) -> str | None:
    r"""Content of the last `\boxed{...}` that is closed.

    If the last one is never closed, an earlier one is closed before it begins or never: each search
    may stop where the one before it began.
    """
    limit = len(block)
    for opening in reversed([match.span() for match in _BOXED.finditer(block)]):
        end = _closing_brace(block, opening[1], limit)
        if end is not None:
            return block[opening[1] : end]
        limit = opening[0]
    return None


def _closing_brace(block: str, start: int, limit: int) -> int | None:
    """Place of the brace that closes the one before `start`, if it lies before `limit`."""
    depth = 1
    for run in _BRACES.finditer(block, start, limit):
        length = run.end() - run.start()
        if block[run.start()] == "{":
            depth += length
        elif block[run.start()] == "}":
            if length >= depth:
                return run.start() + depth - 1
            depth -= length
    return None
