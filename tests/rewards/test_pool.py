import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from yaoki.errors import UsageError, YaokiError
from yaoki.rewards.pool import VerifierPool
from yaoki.types import Task, Verdict, VerdictReason, make_task

TASK = make_task("47+38-12=", "73", "arithmetic")
SCRIPTED = "user_verifiers:Scripted"
RIGHT = Verdict(1.0, VerdictReason.CORRECT, "right")
ERROR = Verdict(0.0, VerdictReason.ERROR)
TIMEOUT = Verdict(0.0, VerdictReason.TIMEOUT)
LONG_S = 120.0
"""A limit that no healthy answer meets, however busy the machine."""


def boxed(answer: str) -> str:
    return f"<answer>\\boxed{{{answer}}}</answer>"


def no_poll() -> None:
    """Nobody asks to stop."""


def verify(pool: VerifierPool, *texts: str) -> list[Verdict]:
    return pool.verify([(TASK, text) for text in texts], no_poll)


def worker_pids(pool: VerifierPool) -> set[str]:
    """Ask often enough that every worker answers."""
    return {str(verdict.extracted) for verdict in verify(pool, *["pid"] * 200)}


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + LONG_S
    while is_running(pid):
        assert time.monotonic() < deadline_s, f"process {pid} goes on"
        time.sleep(0.01)


def test_verdicts_come_in_the_order_of_the_jobs():
    tasks = [make_task(f"{number}=", str(number), "file") for number in range(300)]
    jobs = [(task, boxed(task.answer) if int(task.answer) % 3 else boxed("-1")) for task in tasks]
    with VerifierPool("math", 2, LONG_S) as pool:
        verdicts = pool.verify(jobs, no_poll)
        assert verdicts == pool.verify(jobs, no_poll)
        assert pool.verify([], no_poll) == []
    assert [verdict.reward for verdict in verdicts] == [float(n % 3 > 0) for n in range(300)]
    assert [verdict.extracted for verdict in verdicts[:3]] == ["-1", "1", "2"]


def test_tasks_and_texts_travel_unharmed():
    strange = "a\0b\n\r\u2028\ud800\U0001f600\\\"'{}"
    with VerifierPool(SCRIPTED, 1, LONG_S) as pool:
        (verdict,) = pool.verify([(Task("u", strange, "\x7f", "s"), "echo")], no_poll)
    # Half a surrogate pair cannot be written to a file: only what is returned for eyes loses it.
    assert verdict.extracted == strange.replace("\ud800", "?") + "|\x7f"


HOSTILE = [
    "{" * 1_000_000,
    "<answer>\\boxed" + "{" * 1_000_000 + "</answer>",
    boxed("{" * 3000 + "}" * 3000),
    boxed("1" * 1_000_000),
    boxed("9**9**9**9"),
    boxed("\\frac{\\left(\\sqrt["),
    boxed("\0\ud800\udfff"),
    "\0" * 100_000,
    "\ud800",
]
ENDLESS = [boxed("9^{9^{9^9}}"), boxed("10^9!")]


def test_hostile_answers_score_nothing_and_the_pool_goes_on(capfd):
    with VerifierPool("math", 2, 1.5) as pool:
        started_s = time.monotonic()
        verdicts = verify(pool, *HOSTILE, *ENDLESS)
        took_s = time.monotonic() - started_s
        assert verify(pool, boxed("73")) == [Verdict(1.0, VerdictReason.CORRECT, "73")]
    assert {verdict.reward for verdict in verdicts} == {0.0}
    assert verdicts[-len(ENDLESS) :] == [TIMEOUT] * len(ENDLESS)
    assert VerdictReason.ERROR not in {verdict.reason for verdict in verdicts}
    assert took_s < LONG_S
    assert capfd.readouterr() == ("", "")


def test_what_a_verifier_does_wrong_is_a_verdict():
    with VerifierPool(SCRIPTED, 2, LONG_S) as pool:
        texts = ["fine", "raise", "die", "fine", "leave", "memory", "fine"]
        assert verify(pool, *texts) == [RIGHT, ERROR, ERROR, RIGHT, ERROR, ERROR, RIGHT]


def test_a_worker_that_overruns_is_killed_and_replaced():
    with VerifierPool(SCRIPTED, 1, 1.0) as pool:
        (before,) = worker_pids(pool)
        assert verify(pool, "sleep", "fine") == [TIMEOUT, RIGHT]
        (after,) = worker_pids(pool)
    assert before != after
    assert not is_running(int(before))


def test_a_worker_that_dies_between_calls_costs_no_answer():
    with VerifierPool(SCRIPTED, 1, LONG_S) as pool:
        (pid,) = worker_pids(pool)
        verify(pool, "die later")
        wait_until_gone(int(pid))
        assert verify(pool, "fine", "fine") == [RIGHT, RIGHT]


def test_what_a_verifier_prints_or_reads_is_not_taken_for_the_protocol(capfd):
    with VerifierPool(SCRIPTED, 1, LONG_S) as pool:
        verdicts = verify(pool, "print", "read", "fine")
    assert [verdict.extracted for verdict in verdicts] == ["right", "''", "right"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise on stdout" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1.0), ("0", 0.0), ("0.1", 0.1), ("-2.5", -2.5), ("1e300", 1e300)]
    + [(text, None) for text in ("nan", "inf", "-inf", "x")],
)
def test_a_reward_is_any_finite_number(text, expected):
    with VerifierPool("user_verifiers:rewards_what_it_is_told", 1, LONG_S) as pool:
        (verdict,) = verify(pool, text)
    assert verdict == (ERROR if expected is None else Verdict(expected, VerdictReason.CORRECT))


def test_a_reward_that_is_no_number_is_an_error():
    with VerifierPool("user_verifiers:rewards_a_text", 1, LONG_S) as pool:
        assert verify(pool, "0.5") == [ERROR]


def test_each_kind_of_failure_is_logged_once(caplog):
    with VerifierPool("user_verifiers:returns_a_number", 1, LONG_S) as pool, caplog.at_level(logging.WARNING):
        assert verify(pool, "a", "b", "c") == [ERROR] * 3
    assert len(caplog.records) == 1
    assert "must return a Verdict, not float" in caplog.text


def test_starting_does_not_count_against_the_first_answer():
    with VerifierPool("user_verifiers:SlowStart", 1, 1.0) as pool:
        assert verify(pool, "fine") == [RIGHT]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maths", "no verifier 'maths'"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("user_verifiers:FailsAtStart", "RuntimeError: no licence"),
    ],
)
def test_a_verifier_that_cannot_be_loaded_is_a_usage_error(spec, message):
    with pytest.raises(UsageError, match=message) as caught, VerifierPool(spec, 2, 1.0):
        pass
    assert caught.value.hint


def test_a_worker_that_never_starts_is_an_error():
    with pytest.raises(YaokiError, match=r"3 times in a row: it ended with exit code 7") as caught:
        VerifierPool("user_verifiers:DiesAtStart", 1, 1.0).__enter__()
    assert caught.value.hint


class Interrupted(Exception):
    pass


def test_an_interrupted_call_leaves_no_answers_to_the_next():
    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with VerifierPool(SCRIPTED, 2, LONG_S) as pool:
            pids = worker_pids(pool)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                verify(pool, "sleep", "sleep", "sleep")
            assert verify(pool, "raise", "fine", "fine") == [ERROR, RIGHT, RIGHT]
            assert not pids & worker_pids(pool)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_signals_to_stop_do_not_reach_the_workers():
    with VerifierPool(SCRIPTED, 2, LONG_S) as pool:
        pids = worker_pids(pool)
        for pid in pids:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                os.kill(int(pid), number)
        assert verify(pool, *["fine"] * 10) == [RIGHT] * 10
        assert worker_pids(pool) <= pids


def test_leaving_ends_the_workers():
    with VerifierPool(SCRIPTED, 2, LONG_S) as pool:
        pids = worker_pids(pool)
    assert not any(is_running(int(pid)) for pid in pids)
    pool.close()


PARENT = """
import os, signal, sys
from yaoki.types import make_task
from yaoki.rewards.pool import VerifierPool
with VerifierPool("user_verifiers:Scripted", 1, 120.0) as pool:
    print(pool.verify([(make_task("p", "1", "s"), "pid")], lambda: None)[0].extracted, flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0.3)  # kills this process, as kill -9 would
    pool.verify([(make_task("p", "1", "s"), "sleep")], lambda: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_workers_die_with_their_parent_even_in_the_middle_of_an_answer():
    parent = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True)
    assert parent.returncode == -signal.SIGALRM
    wait_until_gone(int(parent.stdout))


def test_all_workers_get_work():
    with VerifierPool(SCRIPTED, 2, LONG_S) as pool:
        shares = Counter(verdict.extracted for verdict in verify(pool, *["pid"] * 1000))
    assert len(shares) == 2
