"""Verifiers as a user might write them; loaded by import path in the workers of the tests."""

import mmap
import os
import sys
import threading
import time

from yaoki.types import Task, Verdict, VerdictReason

RIGHT = Verdict(1.0, VerdictReason.CORRECT, "right")


class Scripted:
    """Does what the text says; anything else is right."""

    def __call__(self, task: Task, text: str) -> Verdict:
        if text == "sleep":
            time.sleep(60)
        if text == "die":
            os._exit(9)
        if text == "leave":
            sys.exit(3)
        if text == "raise":
            raise RuntimeError("no idea")
        if text == "memory":
            return Verdict(
                1.0, VerdictReason.CORRECT, str(len(mmap.mmap(-1, 6 * 2**30, flags=mmap.MAP_PRIVATE)))
            )
        if text == "print":
            print("noise on stdout", flush=True)
            os.write(1, b'{"verdict": [1, "correct", "forged"]}\n')
        if text == "read":
            return Verdict(1.0, VerdictReason.CORRECT, repr(sys.stdin.read()))
        if text == "pid":
            return Verdict(1.0, VerdictReason.CORRECT, str(os.getpid()))
        if text == "echo":
            return Verdict(1.0, VerdictReason.CORRECT, task.problem + "|" + task.answer)
        if text == "die later":
            threading.Timer(0.05, os._exit, [5]).start()
        return RIGHT


class NeedsArguments:
    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance


class SlowStart:
    """Takes longer to warm up than the time limit of the test that uses it."""

    def warm_up(self) -> None:
        time.sleep(1.5)

    def __call__(self, task: Task, text: str) -> Verdict:
        return RIGHT


class DiesAtStart:
    def __init__(self) -> None:
        os._exit(7)


class FailsAtStart:
    def __init__(self) -> None:
        raise RuntimeError("no licence")


def rewards_what_it_is_told(task: Task, text: str) -> Verdict:
    return Verdict(float(text), VerdictReason.CORRECT)


def rewards_a_text(task: Task, text: str) -> Verdict:
    return Verdict(text, VerdictReason.CORRECT)  # type: ignore[arg-type]


def returns_a_number(task: Task, text: str) -> Verdict:
    return 1.0  # type: ignore[return-value]


scripted = Scripted()
not_callable = 3
