"""Loaded by every Python process of these tests: a worker does what a plan says, where it says so, once.

A plan is a file `ACTION-PLACE-RANK` in the directory YAOKI_TEST_PLANS that holds the number of the step.
It is removed when its time has come.
"""

import importlib.util
import os
import signal
import sys
import time
from importlib.abc import MetaPathFinder
from pathlib import Path

PLANS = Path(os.environ.get("YAOKI_TEST_PLANS", "/nonexistent"))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ZeroDivisionError("on purpose")


def hold():
    """Go no further until this worker is told to stop."""
    told = []
    before = signal.getsignal(signal.SIGTERM)

    def on_signal(*arguments):
        told.append(True)
        before(*arguments)

    signal.signal(signal.SIGTERM, on_signal)
    (PLANS / "held").touch()
    while not told:
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, before)


ACTIONS = {"die": die, "fail": fail, "hold": hold}


def reached(place, step):
    for name, action in ACTIONS.items():
        plan = PLANS / f"{name}-{place}-{os.environ.get('RANK', '0')}"
        if plan.exists() and int(plan.read_text()) <= step:
            plan.unlink()
            action()


def patch():
    from yaoki.journal.journal import RolloutJournal
    from yaoki.learner.learner import Learner

    append, update = RolloutJournal.append, Learner.update

    def append_or_act(self, rollouts):
        append(self, rollouts)
        reached("generate", self._step)

    def update_or_act(self, experience, step, *rest):
        reached("update", step)
        return update(self, experience, step, *rest)

    RolloutJournal.append, Learner.update = append_or_act, update_or_act


class Finder(MetaPathFinder):
    """Patches when the trainer is imported, and never in processes that do not train."""

    def find_spec(self, name, path, target=None):
        if name != "yaoki.train.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            patch()

        spec.loader.exec_module = execute_and_patch
        return spec


sys.meta_path.insert(0, Finder())
