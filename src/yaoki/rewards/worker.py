"""The process of a verifier: `python -m yaoki.rewards.worker SPEC`, one line of JSON per message.

It reports once whether the verifier was loaded, then answers jobs one at a time:

    -> {"ready": true}  or  {"refused": [message, hint]}
    <- {"task": [uid, problem, answer, source], "text": ...}
    -> {"verdict": [reward, reason, extracted]}  or  {"failed": what}

JSON is in ASCII, so that NUL bytes, newlines and lone surrogates are transported safely. The worker limits
its memory; the pool limits its time, by killing it.
"""

import ctypes
import json
import math
import numbers
import os
import resource
import signal
import sys
from typing import IO

from yaoki.errors import UsageError
from yaoki.rewards.verifiers import NeedsWarmUp, Verifier, load_verifier
from yaoki.types import Task, Verdict, VerdictReason

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Memory that judging may use on top of the loaded verifier."""

_MAX_EXTRACTED_CHARS = 1000
_PR_SET_PDEATHSIG = 1


def main(spec: str) -> None:
    """Serve until the parent closes standard input or dies."""
    _die_with_parent()
    jobs, replies = _reserve_pipes()
    try:
        verifier = load_verifier(spec)
        if isinstance(verifier, NeedsWarmUp):
            verifier.warm_up()
    except UsageError as error:
        _send(replies, {"refused": [error.message, error.hint]})
        return
    except Exception as error:  # noqa: BLE001 - the edge of the process; a user's module may raise anything
        hint = "importing or constructing the verifier fails"
        _send(replies, {"refused": [f"the verifier {spec!r} raised {_described(error)}", hint]})
        return
    _limit_memory()
    _send(replies, {"ready": True})
    for line in jobs:
        job = json.loads(line)
        _send(replies, _judge(verifier, Task(*job["task"]), job["text"]))


def _judge(verifier: Verifier, task: Task, text: str) -> dict[str, object]:
    try:
        verdict = verifier(task, text)
        return {"verdict": _checked(verdict)}
    except Exception as error:  # noqa: BLE001 - the edge of the process; a verifier's failure is a verdict
        return {"failed": _described(error)}


def _checked(verdict: object) -> list[object]:
    """A verdict as JSON. ValueError if it violates the contract of verifiers."""
    if not isinstance(verdict, Verdict):
        raise ValueError(f"a verifier must return a Verdict, not {type(verdict).__name__}")
    reward: object = verdict.reward
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise ValueError(f"a reward must be a finite number, not {reward!r}")
    extracted = verdict.extracted
    if extracted is not None:  # short and valid Unicode, for display and for the journal
        extracted = extracted[:_MAX_EXTRACTED_CHARS].encode(errors="replace").decode()
    return [float(reward), VerdictReason(verdict.reason).value, extracted]


def _die_with_parent() -> None:
    """Die with the trainer, even if it is killed, and ignore signals that are meant for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _reserve_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes of the protocol, on other descriptors: a verifier prints to stderr and reads nothing."""
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return jobs, replies


def _limit_memory() -> None:
    """Limit the address space, so that an answer fails with MemoryError; disable core files."""
    limit = _address_space_bytes() + MEMORY_LIMIT_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space_bytes() -> int:
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _send(replies: IO[bytes], message: dict[str, object]) -> None:
    replies.write(json.dumps(message).encode("ascii") + b"\n")
    replies.flush()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


if __name__ == "__main__":
    main(sys.argv[1])
