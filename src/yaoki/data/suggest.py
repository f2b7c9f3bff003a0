"""The nearest right name for a wrong one. It knows no names of its own."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one if there is any, and the whole list."""
    names = sorted(known)
    listing = "known names: " + ", ".join(names)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}? {listing}" if near else listing
