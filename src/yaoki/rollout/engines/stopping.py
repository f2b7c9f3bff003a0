"""Detects the end of a completion from its token ids, by one rule for all engines.

A file of its own because every engine must end completions at the same token.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from yaoki.types import FinishReason

_REPLACEMENT = "\ufffd"


class StopCondition:
    """Ends a completion at end-of-sequence, or where its text first contains a stop string.

    Text is only decoded after a token that could complete a stop string; all other tokens cost a set lookup.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], more_eos_ids: Sequence[int] = ()
    ) -> None:
        """`more_eos_ids`: end-of-sequence tokens of the model beside the tokenizer's one."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._eos_ids = frozenset([int(tokenizer.eos_token_id), *more_eos_ids])
        pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))]) if stop else []
        self._suspects = frozenset(
            i for i, piece in enumerate(pieces) if any(_may_complete(piece, text) for text in self._stop)
        )
        # A token gives at least one byte, so this many tokens always hold a stop string and its neighbours.
        self._window = max((len(text.encode()) for text in self._stop), default=0) + 1

    def check(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why a completion ends with its last token, or None."""
        last = token_ids[-1]
        if last in self._eos_ids:
            return FinishReason.EOS
        if last in self._suspects and self._ends_with_stop(token_ids):
            return FinishReason.STOP
        return None

    def _ends_with_stop(self, token_ids: Sequence[int]) -> bool:
        before = self._tokenizer.decode(list(token_ids[-self._window : -1]))
        after = self._tokenizer.decode(list(token_ids[-self._window :]))
        return any(after.count(text) > before.count(text) for text in self._stop)


def eos_ids(config: PreTrainedConfig) -> list[int]:
    """The end-of-sequence tokens that a model's config names."""
    named: int | list[int] | None = getattr(config, "eos_token_id", None)
    return named if isinstance(named, list) else [] if named is None else [named]


def _may_complete(piece: str, text: str) -> bool:
    """Whether `text` could end inside of a token that decodes to `piece` on its own.

    Then the piece, up to some place, is what `text` ends with, or holds the whole of it. Half a character
    decodes to a replacement mark and could be anything, but it is not ASCII.
    """
    if _REPLACEMENT in piece and not text.isascii():
        return True
    ends = range(1, len(piece) + 1)
    return any(text.endswith(piece[max(0, end - len(text)) : end]) for end in ends)
