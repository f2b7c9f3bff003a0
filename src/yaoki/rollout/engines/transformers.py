"""Generation with any transformers model on the CPU or one GPU, by a decoding loop of our own.

transformers' `generate()` takes no generator per sample and keeps finished rows in the batch; this loop draws
each token by the completion's own seed and removes finished rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.errors import YaokiError
from yaoki.models.policy import model_logprobs
from yaoki.rollout.engine import OnFinished, Request, Sampling, check_names_and_shapes, valid_unicode
from yaoki.rollout.engines.kv_cache import new_cache
from yaoki.rollout.engines.sampling import sample_tokens
from yaoki.rollout.engines.stopping import StopCondition, eos_ids
from yaoki.seeding import uniforms
from yaoki.types import Completion, FinishReason, Poll

_LEAVE_SHARE = 8
"""Finished rows are removed once they are one in this many: each removal copies the cache."""


class TransformersEngine:
    """Owns a copy of the policy; its weights are set by `load_weights` alone."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._stop = StopCondition(tokenizer, sampling.stop, eos_ids(model.config))
        self.policy_version = -1

    @property
    def batch_invariant(self) -> bool:
        """See RolloutEngine: the last bits of the logits depend on the shape of the batch."""
        return False

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """See RolloutEngine; each is copied as it comes, so after an error the engine has no weights."""
        self.policy_version = -1
        own = self._model.state_dict()
        shapes = {name: tensor.shape for name, tensor in own.items()}
        for name, tensor in check_names_and_shapes(shapes, weights):
            own[name].copy_(tensor)
        self.policy_version = policy_version

    def sleep(self) -> None:
        """No-op: this engine is for models that fit beside the learner."""

    def wake(self) -> None:
        """No-op."""

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """See RolloutEngine."""
        self._require_weights()
        return model_logprobs(self._model, token_ids)

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """See RolloutEngine."""
        self._require_weights()
        batch = _DecodingBatch(self._model, requests)
        for position in range(self._sampling.max_new_tokens):
            poll()
            numbers = torch.from_numpy(uniforms(batch.seeds, position)).to(batch.logits.device)
            tokens, logprobs = sample_tokens(
                batch.logits, numbers, self._sampling.temperature, self._sampling.top_p
            )
            batch.append(tokens.tolist(), logprobs.tolist(), self._stop)
            if batch.is_finished:
                break
            if position + 1 < self._sampling.max_new_tokens:
                batch.advance(tokens)
        rows = zip(batch.token_ids, batch.logprobs, batch.reasons, strict=True)
        completions = [self._completion(*row) for row in rows]
        if on_finished is not None:
            for place, completion in enumerate(completions):
                on_finished(place, completion)
        return completions

    def _require_weights(self) -> None:
        if self.policy_version < 0:
            raise YaokiError("the engine has no weights yet", hint="call load_weights first")

    def _completion(
        self, token_ids: list[int], logprobs: list[float], reason: FinishReason | None
    ) -> Completion:
        text = valid_unicode(str(self._tokenizer.decode(token_ids, skip_special_tokens=True)))
        return Completion(tuple(token_ids), tuple(logprobs), text, reason or FinishReason.LENGTH)


class _DecodingBatch:
    """The rows of one micro-batch while they grow: cache, next logits, and what was sampled so far."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request]) -> None:
        self._model = model
        self.token_ids: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        self.reasons: list[FinishReason | None] = [None for _ in requests]
        self._rows = list(range(len(requests)))
        self.seeds = np.array([request.seed for request in requests], dtype=np.uint64)
        self._cache = new_cache(model.config)
        prompts, places = _distinct([request.prompt_ids for request in requests])
        ids, mask = _left_padded(prompts, model.device)
        self._mask = None if bool(mask.all()) else mask
        self._positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.logits = self._forward(ids)
        self._take(torch.tensor(places, device=model.device))

    @property
    def is_finished(self) -> bool:
        return all(self.reasons[row] is not None for row in self._rows)

    def append(self, tokens: list[int], logprobs: list[float], stop: StopCondition) -> None:
        """Record one sampled token per row that is still growing."""
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            if self.reasons[row] is None:
                self.token_ids[row].append(token)
                self.logprobs[row].append(logprob)
                self.reasons[row] = stop.check(self.token_ids[row])

    def advance(self, tokens: Tensor) -> None:
        """Compute the logits that follow the tokens just sampled."""
        growing = [place for place, row in enumerate(self._rows) if self.reasons[row] is None]
        if (len(self._rows) - len(growing)) * _LEAVE_SHARE >= len(self._rows):
            self._rows = [self._rows[place] for place in growing]
            self.seeds = self.seeds[growing]
            indices = torch.tensor(growing, device=tokens.device)
            self._take(indices)
            tokens = tokens[indices]
        self._positions = self._positions[:, -1:] + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        self.logits = self._forward(tokens[:, None])

    def _take(self, indices: Tensor) -> None:
        """Make the named rows of the last forward pass, in that order, the rows of the next."""
        self._cache.batch_select_indices(indices)
        self.logits = self.logits[indices]
        self._positions = self._positions[indices]
        if self._mask is not None:
            self._mask = self._mask[indices]

    def _forward(self, ids: Tensor) -> Tensor:
        """Logits `[B, V]` of the next token of each row."""
        output: Any = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _distinct(prompts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each prompt once, and where among these each of the given ones is: a group shares its prompt."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


def _left_padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts `[B, S]` aligned at their end, and the mask of their real tokens."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
