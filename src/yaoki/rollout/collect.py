"""Prompts in, rewarded rollouts out: fixed micro-batches through the engine, answers through the verifier.

Which completions share a micro-batch is a function of their coordinates alone. Knows nothing of training.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from yaoki.rollout.engine import Poll, Request, RolloutEngine
from yaoki.seeding import Purpose, seed
from yaoki.types import Completion, Prompt, Rollout, Task, Verdict, VerdictReason


class AnswerVerifier(Protocol):
    """Judges answers; never raises for what a text holds."""

    def verify(self, jobs: Sequence[tuple[Task, str]]) -> list[Verdict]:
        """One verdict per (task, text), in order."""
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
) -> list[Rollout]:
    """`num_samples` rollouts of each prompt, ordered by (prompt, sample).

    The seed of a completion is (run_seed, purpose, step, prompt, sample). `on_progress(done, total)` is
    called after each micro-batch. Raises what `poll` raises; then nothing is kept.
    """
    places = [(index, sample) for index in range(len(prompts)) for sample in range(num_samples)]
    rollouts: list[Rollout] = []
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        requests = [
            Request(prompts[index].token_ids, seed(run_seed, purpose, step, index, sample))
            for index, sample in batch
        ]
        completions = engine.generate(requests, poll)
        verdicts = _judge(verifier, [prompts[index] for index, _ in batch], completions)
        rollouts += [
            Rollout(step, index, sample, engine.policy_version, prompts[index], completion, verdict)
            for (index, sample), completion, verdict in zip(batch, completions, verdicts, strict=True)
        ]
        on_progress(len(rollouts), len(places))
    return rollouts


def _judge(
    verifier: AnswerVerifier, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """Only a completion that stopped by itself is judged; a truncated one scores 0."""
    ended = [place for place, completion in enumerate(completions) if completion.stopped_by_itself]
    verdicts = [Verdict(0.0, VerdictReason.TRUNCATED)] * len(completions)
    judged = verifier.verify([(prompts[place].task, completions[place].text) for place in ended])
    for place, verdict in zip(ended, judged, strict=True):
        verdicts[place] = verdict
    return verdicts
