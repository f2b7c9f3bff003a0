"""Generation with vLLM's offline engine, one per rank or shared by neighbours, in the learner's process.

vLLM batches continuously: each completion is passed on as it ends and does not depend, but for the last bits
of its logits, on what is generated beside it. Where a completion ends is decided here, by the rule of the
transformers engine; vLLM knows only the token limit. Weight updates are in vllm_weights.py.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from yaoki.errors import NonFiniteError, WeightSyncError, YaokiError
from yaoki.ranks.agree import stop_together
from yaoki.rollout.engine import OnFinished, Request, Sampling, check_names_and_shapes, valid_unicode
from yaoki.rollout.engines.global_state import preserve_torch_globals
from yaoki.rollout.engines.stopping import StopCondition, eos_ids
from yaoki.rollout.engines.vllm_weights import VllmOptions, library, new_model
from yaoki.types import Completion, FinishReason, Poll


class PartialCompletion:
    """Accumulates the tokens of one in-flight request."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.reason: FinishReason | None = None
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []

    def extend(self, new: Sequence[tuple[int, float]], stop: StopCondition) -> None:
        """Append new tokens with their log-probabilities, up to the one that ends the completion."""
        for token, logprob in new:
            self._token_ids.append(token)
            self._logprobs.append(logprob)
            self.reason = stop.check(self._token_ids)
            if self.reason is not None:
                return

    def completion(self, tokenizer: PreTrainedTokenizerBase) -> Completion:
        """The completion, cut off by the token limit if nothing else ended it.

        NonFiniteError if a token was sampled from logits that are not finite.
        """
        if not all(map(math.isfinite, self._logprobs)):
            raise NonFiniteError(
                "the policy's logits are not finite: there is nothing to sample from",
                hint="training has diverged; fork the run from an earlier step with a lower policy.lr",
            )
        text = valid_unicode(str(tokenizer.decode(self._token_ids, skip_special_tokens=True)))
        reason = self.reason or FinishReason.LENGTH
        return Completion(tuple(self._token_ids), tuple(self._logprobs), text, reason)


class TensorParallelGroup:
    """The `size` neighbouring ranks that share an engine, each with a slice of the weights.

    vLLM schedules on each of them by itself, and each samples from the logits of all: the same calls in the
    same order give the same tokens on all, so no tokens are exchanged. Only stopping has to be agreed on.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def is_first(self) -> bool:
        """Whether this rank passes completions on for all of them."""
        return self._size == 1 or dist.get_rank() % self._size == 0

    def any_reason(self, mine: str | None) -> str | None:
        """The reason that some rank of the group has, or None; a collective, once vLLM has started."""
        if self._size == 1:
            return mine
        group = library().distributed.get_tp_group().cpu_group
        is_any = torch.tensor(int(mine is not None))
        dist.all_reduce(is_any, dist.ReduceOp.MAX, group=group)
        if not is_any:  # the usual case, once per token
            return None
        reasons: list[str | None] = [None] * self._size
        dist.all_gather_object(reasons, mine, group=group)
        return next(filter(None, reasons), None)


_SEED_BITS = 0x7FFFFFFFFFFFFFFF
"""vLLM keeps seeds as signed numbers of 64 bits."""


class VllmEngine:
    """One engine of vLLM on this rank's device, or its share of one; no weights before `load_weights`.

    Ranks that share an engine make the same calls in the same order.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        options: VllmOptions,
    ) -> None:
        """`config` is that of the policy. UsageError when vLLM is not there, or cannot do what is asked."""
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        parameters = skeleton.state_dict(keep_vars=True)
        self._shapes = {name: tensor.shape for name, tensor in parameters.items()}
        first_names = {id(tensor): name for name, tensor in reversed(parameters.items())}
        self._tied = parameters.keys() - first_names.values()
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._stop = StopCondition(tokenizer, sampling.stop, eos_ids(config))
        self._request_numbers = count()
        self._model = new_model(config, type(skeleton).__name__, sampling, options)
        self._group = TensorParallelGroup(options.tensor_parallel)
        self._is_asleep = False
        self.policy_version = -1

    @property
    def batch_invariant(self) -> bool:
        """See RolloutEngine."""
        return True

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """See RolloutEngine; after an error the engine has no weights."""
        if self._is_asleep:
            raise YaokiError("the engine sleeps and cannot take weights", hint="call wake first")
        self.policy_version = -1
        whole = check_names_and_shapes(self._shapes, weights)
        with preserve_torch_globals():
            self._model.push((pair for pair in whole if pair[0] not in self._tied), policy_version)
        self.policy_version = policy_version

    def sleep(self) -> None:
        """Free the memory of weights and cache; the weights are dropped."""
        self.policy_version = -1
        with preserve_torch_globals():
            if not self._is_asleep:
                self._model.sleep()
        self._is_asleep = True

    def wake(self) -> None:
        """Allocate memory for the weights."""
        with preserve_torch_globals():
            if self._is_asleep:
                self._model.wake()
        self._is_asleep = False

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """See RolloutEngine."""
        llm = self._loaded()
        params = library().SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        with preserve_torch_globals():
            (output,) = llm.generate([{"prompt_token_ids": list(token_ids)}], params, use_tqdm=False)
        entries = output.prompt_logprobs[1:]
        return [float(entry[token].logprob) for token, entry in zip(token_ids[1:], entries, strict=True)]

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished | None = None
    ) -> list[Completion]:
        """See RolloutEngine."""
        engine = self._loaded().llm_engine
        hand_on = on_finished if self._group.is_first else None
        completions: dict[int, Completion] = {}
        with preserve_torch_globals(), self._pending(engine, requests) as rows:
            while rows:
                stop_together(poll, self._group.any_reason)
                for name in self._step(engine, rows):
                    row = rows.pop(name)
                    completions[row.place] = row.completion(self._tokenizer)
                    if hand_on is not None:
                        hand_on(row.place, completions[row.place])
        return [completions[place] for place in range(len(requests))]

    @contextmanager
    def _pending(self, engine: Any, requests: Sequence[Request]) -> Iterator[dict[str, PartialCompletion]]:
        """The requests as vLLM has them, by name; those that are left at the end are aborted."""
        rows: dict[str, PartialCompletion] = {}
        try:
            for place, request in enumerate(requests):
                name = str(next(self._request_numbers))
                rows[name] = PartialCompletion(place)
                prompt = {"prompt_token_ids": list(request.prompt_ids)}
                engine.add_request(name, prompt, self._params(request.seed))
            yield rows
        finally:
            engine.abort_request(list(rows))

    def _step(self, engine: Any, rows: dict[str, PartialCompletion]) -> list[str]:
        """Let vLLM sample tokens; returns the names of the requests that ended."""
        ended, stopped = [], []
        for output in engine.step():
            row, new = rows[output.request_id], output.outputs[0]
            pairs = zip(new.token_ids, new.logprobs, strict=True)
            row.extend([(token, entry[token].logprob) for token, entry in pairs], self._stop)
            if output.finished or row.reason is not None:
                ended.append(output.request_id)
            if not output.finished and row.reason is not None:
                stopped.append(output.request_id)
            if output.finished and row.reason is None and new.finish_reason != "length":
                raise YaokiError(f"vLLM aborted a completion: {new.finish_reason}")
        engine.abort_request(stopped)
        return ended

    def _loaded(self) -> Any:
        """vLLM's LLM, once it has acknowledged the weights."""
        if self.policy_version < 0:
            raise YaokiError("the engine has no weights yet", hint="call load_weights first")
        if (held := self._model.llm.get_weight_version()) != str(self.policy_version):
            raise WeightSyncError(
                f"vLLM holds weights of version {held}, not of version {self.policy_version}"
            )
        self._model.take_cache()
        return self._model.llm

    def _params(self, seed: int) -> Any:
        vllm = library()
        return vllm.SamplingParams(
            seed=seed & _SEED_BITS,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_new_tokens,
            logprobs=0,  # of the sampled token alone
            ignore_eos=True,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )
