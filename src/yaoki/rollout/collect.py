"""Prompts in, rewarded rollouts out: fixed micro-batches through the engine, answers through the verifier.

Which completions share a micro-batch is a function of their coordinates alone. What a log of earlier
attempts holds is not made again. Knows nothing of training, nor of how the log is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from yaoki.errors import StopRequested
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

    rank: int
    size: int

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
    hold are dealt out to the ranks in turn, so every rank must find the same. `on_progress(done, total)`
    counts this rank's. Raises what `poll` raises, on all ranks; then finished micro-batches are in `log`.
    """
    places = [(index, sample) for index in range(len(prompts)) for sample in range(num_samples)]
    found: dict[Place, JudgedCompletion] = {}
    missing: list[Sequence[Place]] = []
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        logged = log.find(batch)
        found |= {} if logged is None else dict(zip(batch, logged, strict=True))
        missing += [batch] if logged is None else []

    def rollout(place: Place, completion: Completion, verdict: Verdict) -> Rollout:
        index, sample = place
        return Rollout(step, index, sample, engine.policy_version, prompts[index], completion, verdict)

    def sample(batch: Sequence[Place]) -> list[Rollout]:
        requests = [
            Request(prompts[index].token_ids, seed(run_seed, purpose, step, index, sample))
            for index, sample in batch
        ]
        completions = engine.generate(requests, poll)
        verdicts = _judge(verifier, [prompts[index] for index, _ in batch], completions, poll)
        return [rollout(*member) for member in zip(batch, completions, verdicts, strict=True)]

    def sample_own() -> list[Rollout]:
        own = missing[peers.rank :: peers.size]
        total, new = len(found) + sum(map(len, own)), list[Rollout]()
        if found:
            on_progress(len(found), total)
        for batch in own:
            rollouts = sample(batch)
            log.append(rollouts)
            new += rollouts
            on_progress(len(found) + len(new), total)
        return new

    found |= peers.exchange(_unless_stopped(sample_own, peers))
    return [rollout(place, found[place].completion, found[place].verdict) for place in places]


def _unless_stopped(work: Callable[[], list[Rollout]], peers: Peers) -> list[Rollout]:
    """What `work` returns; StopRequested if any rank was stopped, so that none waits for another one."""
    own_reason: str | None = None
    done: list[Rollout] = []
    try:
        done = work()
    except StopRequested as stop:
        own_reason = str(stop)
    if (reason := peers.any_reason(own_reason)) is not None:
        raise StopRequested(reason)
    return done


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
