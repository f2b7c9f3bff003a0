"""Numbers about completions that are watched but never rewarded."""

import re
from collections.abc import Sequence

REFLECTION_WORDS = ("wait", "recheck", "retry", "alternatively", "however")
"""Words whose growing use Open-Reasoner-Zero takes as a sign of reflection (its section on analysis)."""

_REFLECTION = re.compile(rf"\b(?:{'|'.join(REFLECTION_WORDS)})\b", re.IGNORECASE)
_NGRAM_TOKENS = 4


def repetition_score(token_ids: Sequence[int]) -> float:
    """Share of 4-grams of tokens that occurred before: 1 - different / all, in [0, 1).

    This is the complement of the distinct-n measure (Li et al. 2016). A completion of fewer than four
    tokens scores 0; one that says the same thing for ever comes close to 1.
    """
    num_ngrams = len(token_ids) - _NGRAM_TOKENS + 1
    if num_ngrams < 1:
        return 0.0
    shifted = (token_ids[start : start + num_ngrams] for start in range(_NGRAM_TOKENS))
    return 1.0 - len(set(zip(*shifted, strict=True))) / num_ngrams


def count_reflection_words(text: str) -> int:
    """How often the reflection words occur, as whole words, in any case."""
    return sum(1 for _ in _REFLECTION.finditer(text))
