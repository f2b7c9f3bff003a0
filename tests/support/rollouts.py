"""Rollouts written by hand."""

from yaoki.types import Completion, FinishReason, Prompt, Rollout, RolloutKey, Task, Verdict, VerdictReason


def rollout(
    prompt_index: int = 0,
    sample: int = 0,
    *,
    reward: float = 0.0,
    token_ids: tuple[int, ...] = (5, 6),
    text: str = "some text",
    finish: FinishReason = FinishReason.STOP,
    reason: VerdictReason | None = None,
    problem: str = "1+1=",
) -> Rollout:
    """A rollout whose log-probabilities are -1 each."""
    prompt = Prompt(Task(f"u{prompt_index}", problem, "2", "test"), f"{problem}<think>", (1, 2, 3))
    completion = Completion(token_ids, tuple(-1.0 for _ in token_ids), text, finish)
    found = reason or (VerdictReason.CORRECT if reward else VerdictReason.WRONG)
    return Rollout(RolloutKey(1, prompt_index, sample), 0, prompt, completion, Verdict(reward, found))


def batch(rewards: list[list[int]]) -> list[Rollout]:
    """One row of rewards per prompt, one reward per sample."""
    return [
        rollout(prompt, sample, reward=float(reward))
        for prompt, group in enumerate(rewards)
        for sample, reward in enumerate(group)
    ]
