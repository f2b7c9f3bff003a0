"""Prompts in, rewarded rollouts out: fixed micro-batches through the engine, answers through the verifier.

Which completions share a micro-batch is a function of their coordinates alone, and what the journal already
holds is not sampled again: a resumed step comes out with the same bits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from yaoki.journal.columns import pack, unpack
from yaoki.journal.journal import NullJournal, RolloutJournal
from yaoki.ranks.agree import stop_together
from yaoki.ranks.world import World
from yaoki.rewards.pool import VerifierPool
from yaoki.rollout.engine import Request, RolloutEngine
from yaoki.seeding import Purpose, seed, step_seed
from yaoki.types import (
    Completion,
    JudgedCompletion,
    Poll,
    Prompt,
    Rollout,
    RolloutKey,
    Verdict,
    VerdictReason,
)

OnProgress = Callable[[int, int], None]
"""Receives (finished, total) rollouts of this rank."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Samples and judges rollouts, on all ranks of a run together."""

    engine: RolloutEngine
    verifier: VerifierPool
    journal: RolloutJournal | NullJournal
    world: World
    ranks_per_engine: int
    """Neighbouring ranks that share an engine; divides the number of ranks."""
    run_seed: int
    group_size: int
    """Completions per prompt of a step."""
    num_eval_samples: int
    """Completions per prompt of an evaluation."""
    batch_size: int
    """Completions per micro-batch."""
    poll: Poll

    def training(self, prompts: Sequence[Prompt], step: int, on_progress: OnProgress) -> list[Rollout]:
        """`group_size` rollouts of each prompt of a step, ordered by (prompt, sample); the same list on every
        rank.

        The seed of a completion is (run_seed, step, prompt, sample). Micro-batches that the journal, opened
        for this step, does not hold are dealt out to the engines in turn, so every rank must find the same in
        it. With a batch-invariant engine single completions are dealt out, and each is journaled as it
        finishes. Raises what `poll` raises, on all ranks; finished micro-batches are in the journal then.
        """
        keys = [RolloutKey(step, i, s) for i in range(len(prompts)) for s in range(self.group_size)]
        return self._collect(prompts, keys, self.journal, on_progress)

    def evaluation(self, prompts: Sequence[Prompt], on_progress: OnProgress) -> list[Rollout]:
        """The same outside of a step (`RolloutKey.step` 0): with the same seeds every time, and not
        journaled."""
        keys = [RolloutKey(0, i, s) for i in range(len(prompts)) for s in range(self.num_eval_samples)]
        return self._collect(prompts, keys, NullJournal(), on_progress)

    def _collect(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[RolloutKey],
        journal: RolloutJournal | NullJournal,
        on_progress: OnProgress,
    ) -> list[Rollout]:
        unit = 1 if self.engine.batch_invariant else self.batch_size
        batches = [keys[start : start + unit] for start in range(0, len(keys), unit)]
        found: dict[RolloutKey, JudgedCompletion] = {}
        missing = []
        for batch in batches:
            logged = journal.find(batch)
            if logged is None:
                missing.append(batch)
            else:
                found |= zip(batch, logged, strict=True)
        num_engines = self.world.size // self.ranks_per_engine
        own = missing[self.world.rank // self.ranks_per_engine :: num_engines]
        total = len(found) + sum(map(len, own))

        def progress(num_new: int) -> None:
            on_progress(len(found) + num_new, total)

        if found:
            progress(0)
        sampler = _Sampler(self.engine, self.verifier, prompts, self.run_seed, journal, self.poll)
        new = stop_together(lambda: sampler.sample(own, progress), self.world.loop.any_reason)
        found |= self._all_gather(new)
        return [sampler.rollout(key, found[key]) for key in keys]

    def _all_gather(self, rollouts: Sequence[Rollout]) -> dict[RolloutKey, JudgedCompletion]:
        """The new rollouts of all ranks."""
        if self.world.size == 1:
            return {rollout.key: rollout.judged for rollout in rollouts}
        messages = self.world.loop.gather(pack(rollouts))
        return {key: judged for message in messages for key, judged in unpack(message).items()}


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Samples, judges and journals completions of one step."""

    engine: RolloutEngine
    verifier: VerifierPool
    prompts: Sequence[Prompt]
    run_seed: int
    journal: RolloutJournal | NullJournal
    poll: Poll

    def rollout(self, key: RolloutKey, judged: JudgedCompletion) -> Rollout:
        prompt = self.prompts[key.prompt]
        return Rollout(key, self.engine.policy_version, prompt, judged.completion, judged.verdict)

    def sample(
        self, batches: Sequence[Sequence[RolloutKey]], progress: Callable[[int], None]
    ) -> list[Rollout]:
        if self.engine.batch_invariant:
            return self._one_by_one([key for batch in batches for key in batch], progress)
        new: list[Rollout] = []
        for batch in batches:
            completions = self.engine.generate([self._request(key) for key in batch], self.poll)
            new += self._keep(batch, completions, self.poll)
            progress(len(new))
        return new

    def _one_by_one(self, keys: Sequence[RolloutKey], progress: Callable[[int], None]) -> list[Rollout]:
        """Each completion is judged and journaled as it finishes, on a thread beside the generation."""
        kept: list[Future[list[Rollout]]] = []
        pending: deque[Future[list[Rollout]]] = deque()
        with ThreadPoolExecutor(1, "judge") as thread:

            def on_finished(number: int, completion: Completion) -> None:
                # Finished completions are kept even when the run is asked to stop: no poll.
                kept.append(thread.submit(self._keep, [keys[number]], [completion], lambda: None))
                pending.append(kept[-1])
                while pending[0].done() and len(pending) > 1:
                    pending.popleft().result()  # a failure on the thread ends the generation here
                progress(len(kept))

            if keys:
                self.engine.generate([self._request(key) for key in keys], self.poll, on_finished)
            return [rollout for future in kept for rollout in future.result()]

    def _request(self, key: RolloutKey) -> Request:
        if key.step == 0:
            value = seed(self.run_seed, Purpose.EVALUATION, 0, key.prompt, key.sample)
        else:
            value = step_seed(self.run_seed, Purpose.ROLLOUT, *key)
        return Request(self.prompts[key.prompt].token_ids, value)

    def _keep(
        self, keys: Sequence[RolloutKey], completions: Sequence[Completion], poll: Poll
    ) -> list[Rollout]:
        prompts = [self.prompts[key.prompt] for key in keys]
        verdicts = _judge(self.verifier, prompts, completions, poll)
        judged = map(JudgedCompletion, completions, verdicts)
        rollouts = [self.rollout(*pair) for pair in zip(keys, judged, strict=True)]
        self.journal.append(rollouts)
        return rollouts


def _judge(
    verifier: VerifierPool, prompts: Sequence[Prompt], completions: Sequence[Completion], poll: Poll
) -> list[Verdict]:
    """Only a completion that stopped by itself is judged; a truncated one scores 0."""
    ended = [place for place, completion in enumerate(completions) if completion.stopped_by_itself]
    verdicts = [Verdict(0.0, VerdictReason.TRUNCATED)] * len(completions)
    jobs = [(prompts[place].task, completions[place].text) for place in ended]
    judged = verifier.verify(jobs, poll)
    for place, verdict in zip(ended, judged, strict=True):
        verdicts[place] = verdict
    return verdicts
