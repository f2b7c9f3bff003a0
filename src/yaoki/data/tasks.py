"""How a task is made and named. This module does not know where problems come from."""

import hashlib
from collections.abc import Iterable

from yaoki.types import Task


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
