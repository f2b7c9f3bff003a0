"""The verifier of the tests' runs. Each attempt starts a process that imports it, so it imports little."""

import hashlib

from yaoki.types import Task, Verdict, VerdictReason


def judge_by_hash(task: Task, text: str) -> Verdict:
    """One stable coin per text: about half of the completions that stop earn a reward."""
    reward = float(hashlib.blake2b((task.uid + text).encode()).digest()[0] % 2)
    return Verdict(reward, VerdictReason.CORRECT if reward else VerdictReason.WRONG)
