"""One completion while an engine of another library samples it. Knows nothing of that library."""

import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from yaoki.errors import NonFiniteError
from yaoki.rollout.stopping import StopCondition
from yaoki.types import Completion, FinishReason


class Row:
    """Tokens and log-probabilities so far, and why they ended."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.reason: FinishReason | None = None
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []

    def extend(self, new: Sequence[tuple[int, float]], stop: StopCondition) -> None:
        """Take new tokens with their log-probabilities, up to the one that ends the completion."""
        for token, logprob in new:
            self._token_ids.append(token)
            self._logprobs.append(logprob)
            self.reason = stop.check(self._token_ids)
            if self.reason is not None:
                return

    def completion(self, tokenizer: PreTrainedTokenizerBase) -> Completion:
        """What there is; cut off by the token limit if nothing else has ended it.

        NonFiniteError if a token was sampled from logits that are not finite.
        """
        if not all(map(math.isfinite, self._logprobs)):
            raise NonFiniteError(
                "the policy's logits are not finite: there is nothing to sample from",
                hint="training has diverged; fork the run from an earlier step with a lower policy.lr",
            )
        text = str(tokenizer.decode(self._token_ids, skip_special_tokens=True))
        reason = self.reason or FinishReason.LENGTH
        return Completion(tuple(self._token_ids), tuple(self._logprobs), text, reason)
