"""Prompts in, rewarded rollouts out: fixed micro-batches through the engine, answers through the verifier.

Which completions share a micro-batch is a function of their coordinates alone. What a log of earlier
attempts holds is not made again. Knows nothing of training, nor of how the log is kept.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

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
) -> list[Rollout]:
    """`num_samples` rollouts of each prompt, ordered by (prompt, sample).

    The seed of a completion is (run_seed, purpose, step, prompt, sample). `on_progress(done, total)` is
    called after each micro-batch. Raises what `poll` raises; then finished micro-batches are in `log`.
    """
    places = [(index, sample) for index in range(len(prompts)) for sample in range(num_samples)]
    rollouts: list[Rollout] = []

    def rollout(place: Place, completion: Completion, verdict: Verdict) -> Rollout:
        index, sample = place
        return Rollout(step, index, sample, engine.policy_version, prompts[index], completion, verdict)

    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        found = log.find(batch)
        if found is not None:
            rollouts += [rollout(p, f.completion, f.verdict) for p, f in zip(batch, found, strict=True)]
        else:
            requests = [
                Request(prompts[index].token_ids, seed(run_seed, purpose, step, index, sample))
                for index, sample in batch
            ]
            completions = engine.generate(requests, poll)
            verdicts = _judge(verifier, [prompts[index] for index, _ in batch], completions, poll)
            new = [rollout(*member) for member in zip(batch, completions, verdicts, strict=True)]
            log.append(new)
            rollouts += new
        on_progress(len(rollouts), len(places))
    return rollouts


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
