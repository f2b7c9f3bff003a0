"""Prompts in, rewarded rollouts out: fixed micro-batches through the engine, answers through the verifier.

Which completions share a micro-batch is a function of their coordinates alone. What a log of earlier
attempts holds is not made again. Knows nothing of training, nor of how the log is kept.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from yaoki.ranks.agree import stop_together
from yaoki.rollout.engine import Poll, Request, RolloutEngine
from yaoki.seeding import Purpose, seed
from yaoki.types import Completion, Prompt, Rollout, Task, Verdict, VerdictReason

Place = tuple[int, int]
"""Index of the prompt in the batch, and of the sample in its group."""


class AnswerVerifier(Protocol):
    """Judges answers; never raises for what a text holds."""

    def verify(self, jobs: Sequence[tuple[Task, str]], poll: Poll) -> list[Verdict]:
        """One verdict per (task, text), in order; `poll` is called now and then and may raise."""
        ...


class JudgedCompletion(Protocol):
    """A completion with its verdict, as a log gives it back."""

    @property
    def completion(self) -> Completion: ...
    @property
    def verdict(self) -> Verdict: ...


class RolloutLog(Protocol):
    """Where finished micro-batches are kept, and found again after a crash."""

    def find(self, places: Sequence[Place]) -> Sequence[JudgedCompletion] | None:
        """What was sampled at the places of one micro-batch, or None unless all of it is there."""
        ...

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Take over one finished micro-batch."""
        ...


class NoLog:
    """Keeps nothing, finds nothing."""

    def find(self, places: Sequence[Place]) -> None:  # noqa: ARG002
        return None

    def append(self, rollouts: Sequence[Rollout]) -> None:
        pass


class Peers(Protocol):
    """The ranks among which micro-batches are dealt out; all of them collect the same step."""

    share: int
    """Which of `num_shares` equal shares this rank generates; the same for ranks that share an engine."""
    num_shares: int

    def any_reason(self, mine: str | None) -> str | None:
        """The reason that some rank gives; None if none does."""
        ...

    def exchange(self, rollouts: Sequence[Rollout]) -> Mapping[Place, JudgedCompletion]:
        """What all ranks have sampled."""
        ...


def collect(
    engine: RolloutEngine,
    verifier: AnswerVerifier,
    prompts: Sequence[Prompt],
    *,
    purpose: Purpose,
    run_seed: int,
    step: int,
    num_samples: int,
    batch_size: int,
    poll: Poll,
    on_progress: Callable[[int, int], None],
    log: RolloutLog,
    peers: Peers,
) -> list[Rollout]:
    """`num_samples` rollouts of each prompt, ordered by (prompt, sample); the same list on every rank.

    The seed of a completion is (run_seed, purpose, step, prompt, sample). Micro-batches that `log` does not
    hold are dealt out to the engines in turn, so every rank must find the same; with an engine whose
    completions do not depend on the batch, single ones are, and each is logged as it finishes, by the rank
    that the engine hands it to.
    `on_progress(done, total)` counts this rank's. Raises what `poll` raises, on all ranks; then finished
    micro-batches are in `log`.
    """
    sampler = _Sampler(engine, verifier, prompts, purpose, run_seed, step, log, poll)
    places = [(index, sample) for index in range(len(prompts)) for sample in range(num_samples)]
    unit = 1 if engine.batch_invariant else batch_size
    found: dict[Place, JudgedCompletion] = {}
    missing: list[Sequence[Place]] = []
    for start in range(0, len(places), unit):
        batch = places[start : start + unit]
        logged = log.find(batch)
        found |= {} if logged is None else dict(zip(batch, logged, strict=True))
        missing += [batch] if logged is None else []

    def sample_own() -> list[Rollout]:
        own = missing[peers.share :: peers.num_shares]
        total = len(found) + sum(map(len, own))

        def progress(num_new: int) -> None:
            on_progress(len(found) + num_new, total)

        if found:
            progress(0)
        if engine.batch_invariant:
            return sampler.one_by_one([place for (place,) in own], progress)
        return sampler.batch_by_batch(own, progress)

    found |= peers.exchange(stop_together(sample_own, peers.any_reason))
    return [sampler.rollout(place, found[place].completion, found[place].verdict) for place in places]


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Samples, judges and logs completions of one step."""

    engine: RolloutEngine
    verifier: AnswerVerifier
    prompts: Sequence[Prompt]
    purpose: Purpose
    run_seed: int
    step: int
    log: RolloutLog
    poll: Poll

    def rollout(self, place: Place, completion: Completion, verdict: Verdict) -> Rollout:
        index, sample = place
        version = self.engine.policy_version
        return Rollout(self.step, index, sample, version, self.prompts[index], completion, verdict)

    def batch_by_batch(
        self, batches: Sequence[Sequence[Place]], progress: Callable[[int], None]
    ) -> list[Rollout]:
        """Micro-batches, each kept as a whole."""
        new: list[Rollout] = []
        for batch in batches:
            completions = self.engine.generate([self._request(place) for place in batch], self.poll)
            new += self._keep(batch, completions, self.poll)
            progress(len(new))
        return new

    def one_by_one(self, places: Sequence[Place], progress: Callable[[int], None]) -> list[Rollout]:
        """Each completion is judged and kept as it finishes, on a thread beside the generation."""
        kept: list[Future[list[Rollout]]] = []
        unseen: deque[Future[list[Rollout]]] = deque()
        with ThreadPoolExecutor(1, "judge") as thread:

            def on_finished(number: int, completion: Completion) -> None:
                kept.append(thread.submit(self._keep, [places[number]], [completion], _never_stop))
                unseen.append(kept[-1])
                while unseen[0].done() and len(unseen) > 1:
                    unseen.popleft().result()  # what has failed there ends the generation here
                progress(len(kept))

            if places:
                self.engine.generate([self._request(place) for place in places], self.poll, on_finished)
            return [rollout for future in kept for rollout in future.result()]

    def _request(self, place: Place) -> Request:
        index, sample = place
        coordinates = (self.purpose, self.step, index, sample)
        return Request(self.prompts[index].token_ids, seed(self.run_seed, *coordinates))

    def _keep(self, places: Sequence[Place], completions: Sequence[Completion], poll: Poll) -> list[Rollout]:
        prompts = [self.prompts[index] for index, _ in places]
        verdicts = _judge(self.verifier, prompts, completions, poll)
        rollouts = [self.rollout(*member) for member in zip(places, completions, verdicts, strict=True)]
        self.log.append(rollouts)
        return rollouts


def _never_stop() -> None:
    """What has finished is kept, stop or not."""


def _judge(
    verifier: AnswerVerifier, prompts: Sequence[Prompt], completions: Sequence[Completion], poll: Poll
) -> list[Verdict]:
    """Only a completion that stopped by itself is judged; a truncated one scores 0."""
    ended = [place for place, completion in enumerate(completions) if completion.stopped_by_itself]
    verdicts = [Verdict(0.0, VerdictReason.TRUNCATED)] * len(completions)
    jobs = [(prompts[place].task, completions[place].text) for place in ended]
    judged = verifier.verify(jobs, poll)
    for place, verdict in zip(ended, judged, strict=True):
        verdicts[place] = verdict
    return verdicts
