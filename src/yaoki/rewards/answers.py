r"""The answer in a completion: the last `<answer> ... \boxed{...} ... </answer>`.

Completions must be treated as hostile, since training rewards whatever this module accepts: every search is
linear in the text, without recursion and without backtracking.
"""

import re
from collections.abc import Iterator

_OPEN, _CLOSE = "<answer>", "</answer>"
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACES = re.compile(r"(?:\\[\\{}])+|\{+|\}+")
"""A run of escaped characters (`\\{` is a printed brace), of opening braces, or of closing braces."""


def extract_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` with balanced braces, in the last answer block that has one.

    None if no complete block has one, or if it is blank. Leading and trailing spaces are stripped.
    """
    for block in _blocks_from_the_end(text):
        boxed = _last_boxed(block)
        if boxed is not None:
            return boxed.strip() or None
    return None


def has_format(text: str) -> bool:
    """Whether a completion of a prompt ending in `<think>` has exactly the requested format.

    That is: thoughts, `</think>`, and one answer block with an answer, with only whitespace around it.
    """
    _, _, rest = text.partition("</think>")
    rest = rest.strip()
    is_one_block = rest.startswith(_OPEN) and rest.endswith(_CLOSE) and rest.count(_OPEN) == 1
    return is_one_block and rest.count(_CLOSE) == 1 and extract_answer(rest) is not None


def _blocks_from_the_end(text: str) -> Iterator[str]:
    """Contents of the answer blocks, last first. Each character is read a constant number of times."""
    end = text.rfind(_CLOSE)
    while end >= 0:
        start = text.rfind(_OPEN, 0, end)
        if start < 0:
            return
        yield text[start + len(_OPEN) : end]
        end = text.rfind(_CLOSE, 0, start)


def _last_boxed(block: str) -> str | None:
    r"""Content of the last `\boxed{...}` that is closed.

    If one is never closed, an earlier one is closed before it or never, so the search for an earlier one
    ends where the later one begins.
    """
    limit = len(block)
    for opening in reversed([match.span() for match in _BOXED.finditer(block)]):
        end = _closing_brace(block, opening[1], limit)
        if end is not None:
            return block[opening[1] : end]
        limit = opening[0]
    return None


def _closing_brace(block: str, start: int, limit: int) -> int | None:
    """Index of the brace that closes the one before `start`, if it is below `limit`."""
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
