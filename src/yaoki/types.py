"""The nouns of one training step, from problem to rewarded completion. No torch in here.

task -> prompt -> completion -> verdict -> rollout

A *group* is the rollouts of one prompt; a *batch* is the rollouts of one step. Token ids are the record of
what was sampled; text is for verifiers and readers and is never tokenised again.

**Steps count from 1, everywhere.** Step N takes the state of checkpoint N - 1 to that of checkpoint N: its
rollouts, its row in metrics.jsonl and its folder in the journal all carry N. Checkpoint 0 is the state before
the first step. Randomness has the number of steps before it, N - 1, as its coordinate; see
`seeding.step_seed`.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

Poll = Callable[[], None]
"""Called regularly during long work; raises StopRequested when the run was asked to stop."""


@dataclass(frozen=True, slots=True)
class Task:
    """A problem with its reference answer.

    Example: `Task(uid="3f2a…", problem="47+38-12=", answer="73", source="arithmetic")`
    """

    uid: str
    """Stable digest of problem and answer; equal problems have equal uids."""
    problem: str
    """What the user asks, before any template."""
    answer: str
    """The reference, in the form that the run's verifier understands."""
    source: str
    """Where the task comes from: a file name or a generated family's name."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task as the engine sees it: templated and tokenised once."""

    task: Task
    text: str
    token_ids: tuple[int, ...]


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """The engine saw one of the stop strings."""
    EOS = "eos"
    """The model emitted its end-of-sequence token."""
    LENGTH = "length"
    """The token limit cut it off; such a completion can earn no reward."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Everything after the prompt, as token ids, with the engine's log-probability of each (natural log)."""

    token_ids: tuple[int, ...]
    """Includes the end-of-sequence token or the tokens of the stop string, if it ended that way."""
    logprobs: tuple[float, ...]
    """rollout_logprobs, one per token, of the temperature-scaled distribution before top-p."""
    text: str
    """Valid Unicode."""
    finish_reason: FinishReason
    not_sampled: tuple[int, ...] = ()
    """Positions in `token_ids`, ascending, of tokens that the policy did not sample, such as an environment's
    answer between two turns. They are context for what follows; nothing is learned from them."""

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy sampled."""
        return len(self.token_ids) - len(self.not_sampled)

    @property
    def stopped_by_itself(self) -> bool:
        return self.finish_reason is not FinishReason.LENGTH


class VerdictReason(StrEnum):
    """What the verifier found."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The text holds no answer in the expected form."""
    TRUNCATED = "truncated"
    """Not judged: the completion did not stop by itself."""
    TIMEOUT = "timeout"
    """The verifier ran into its time limit; counts as wrong."""
    ERROR = "error"
    """The verifier itself failed on this answer; counts as wrong."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's judgement of one completion."""

    reward: float
    """Any finite number; the built-in verifiers give 0 or 1."""
    reason: VerdictReason
    extracted: str | None = None
    """The answer found in the text, for display."""

    @property
    def is_correct(self) -> bool:
        """The verifier called it right, whatever reward it gave."""
        return self.reason is VerdictReason.CORRECT


@dataclass(frozen=True, slots=True)
class JudgedCompletion:
    """A completion with its verdict."""

    completion: Completion
    verdict: Verdict


class RolloutKey(NamedTuple):
    """Which rollout of a run; the coordinates of its seed."""

    step: int
    """From 1; 0 for evaluation, which draws the same seeds at every step."""
    prompt: int
    """Index of the prompt in the step's batch."""
    sample: int
    """Index in the group, 0 <= sample < group_size."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Prompt, completion and verdict: one episode."""

    key: RolloutKey
    policy_version: int
    """Number of policy updates that the sampling weights had seen."""
    prompt: Prompt
    completion: Completion
    verdict: Verdict

    @property
    def judged(self) -> JudgedCompletion:
        return JudgedCompletion(self.completion, self.verdict)


def make_task(problem: str, answer: str, source: str) -> Task:
    """A task whose uid (16 hex digits) depends on problem and answer alone, not on the source."""
    uid = hashlib.blake2b(_framed(problem, answer), digest_size=8).hexdigest()
    return Task(uid=uid, problem=problem, answer=answer, source=source)


def tasks_digest(tasks: Iterable[Task]) -> str:
    """Digest (32 hex digits) of all (problem, answer) in order: two datasets that train alike share it."""
    digest = hashlib.blake2b(digest_size=16)
    for task in tasks:
        digest.update(_framed(task.problem, task.answer))
    return digest.hexdigest()


def _framed(*texts: str) -> bytes:
    """The texts with their lengths, so that no two lists of texts have the same bytes."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)
