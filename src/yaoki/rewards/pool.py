"""A pool of verifier processes with a hard time limit per answer. `worker.py` describes the protocol.

One thread and a selector: each worker has at most one job, whose time limit starts when it is sent. A worker
that exceeds it is killed and replaced, and the answer scores 0.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from yaoki.errors import UsageError, YaokiError
from yaoki.types import Task, Verdict, VerdictReason

JsonMessage = dict[str, Any]

START_LIMIT_S = 120.0
MAX_FAILED_STARTS = 3
_NEVER = float("inf")
_READ_BYTES = 1 << 16
_KILL_WAIT_S = 5.0
_MAX_WAIT_S = 0.1
"""Longest time between two polls, so that a stop does not wait for a slow answer."""

_logger = logging.getLogger(__name__)


class WorkerDiedError(Exception):
    """The process has ended, or sent something that is not a reply."""


class VerifierProcess:
    """A worker that is starting, idle, or busy with one job."""

    def __init__(self, spec: str, start_limit_s: float) -> None:
        self.job: int | None = None
        """The caller's number of the current job."""
        self.is_ready = False
        self.deadline_s = time.monotonic() + start_limit_s
        """When the start or the current job times out (monotonic clock); infinite while idle."""
        self._unsent = memoryview(b"")
        self._received = bytearray()
        # A new session: Ctrl-C in the terminal is for the trainer, which still needs its workers.
        # A fixed hash seed: sympy iterates over sets, and equal answers must get equal verdicts.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "yaoki.rewards.worker", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            bufsize=0,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("Popen was asked for pipes")
        self.jobs_fd = self._process.stdin.fileno()
        self.replies_fd = self._process.stdout.fileno()
        os.set_blocking(self.jobs_fd, False)
        os.set_blocking(self.replies_fd, False)

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.job is None

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def set_ready(self) -> None:
        self.is_ready = True
        self.deadline_s = _NEVER

    def start_job(self, job: int, message: JsonMessage, time_limit_s: float) -> None:
        """Send as much of a job as the pipe takes; its time limit starts now."""
        self.job = job
        self._unsent = memoryview(json.dumps(message).encode("ascii") + b"\n")
        self.deadline_s = time.monotonic() + time_limit_s
        self.send()

    def end_job(self) -> int | None:
        """Mark the current job as done, and return its number."""
        job, self.job, self.deadline_s = self.job, None, _NEVER
        return job

    def send(self) -> None:
        """Send as much as the pipe takes. A broken pipe is ignored: `receive` reports the death."""
        try:
            sent = os.write(self.jobs_fd, self._unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]

    def receive(self) -> JsonMessage | None:
        """The reply, or None until it is complete. WorkerDiedError if there will be none."""
        try:
            chunk = os.read(self.replies_fd, _READ_BYTES)
        except BlockingIOError:
            return None
        if not chunk:
            raise WorkerDiedError(f"it ended with exit code {self._exit_code()}")
        self._received += chunk
        if not self._received.endswith(b"\n"):
            return None
        line, self._received = self._received, bytearray()
        try:
            message: JsonMessage = json.loads(line)
        except ValueError as error:
            raise WorkerDiedError(f"it sent something that is not a reply: {error}") from error
        return message

    def kill(self) -> None:
        """Kill the process and close its pipes."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._exit_code()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _exit_code(self) -> int | None:
        """Wait for the process to end; gives up after 5 s, as it may hang in the kernel."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=_KILL_WAIT_S)
        return None


class VerifierPool:
    """A context manager: workers run inside the block."""

    def __init__(self, spec: str, num_workers: int, time_limit_s: float) -> None:
        """`spec` as for `load_verifier`; `time_limit_s` is wall time per answer."""
        self._spec = spec
        self._num_workers = num_workers
        self._time_limit_s = time_limit_s
        self._workers: list[VerifierProcess] = []
        self._selector = selectors.DefaultSelector()
        self._num_failed_starts = 0
        self._reported: set[str] = set()

    def __enter__(self) -> Self:
        """Start all workers and wait until they are ready. UsageError if the verifier cannot be loaded."""
        try:
            for _ in range(self._num_workers):
                self._start_worker()
            while not all(worker.is_ready for worker in self._workers):
                self._handle_events({})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers. May be called twice."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._selector.close()

    def verify(self, jobs: Sequence[tuple[Task, str]], poll: Callable[[], None]) -> list[Verdict]:
        """One verdict per job, in order; `poll` is called often and may raise, which aborts the call.

        No task and no text makes this raise or hang: a timeout gives the verdict TIMEOUT and a failing
        verifier ERROR, both with reward 0. UsageError or YaokiError only if workers cannot be started.
        """
        waiting = deque(range(len(jobs)))
        verdicts: dict[int, Verdict] = {}
        try:
            while len(verdicts) < len(jobs):
                poll()
                self._hand_out(jobs, waiting)
                self._handle_events(verdicts)
        finally:
            # After an exception: a late reply must not be taken for a reply to a job of the next call.
            for worker in [worker for worker in self._workers if worker.job is not None]:
                self._replace(worker)
        return [verdicts[job] for job in range(len(jobs))]

    def _hand_out(self, jobs: Sequence[tuple[Task, str]], waiting: deque[int]) -> None:
        """Give a job to each idle worker; one that died while idle is replaced first."""
        for worker in [worker for worker in self._workers if worker.is_idle]:
            if not waiting:
                return
            if not worker.is_alive():
                self._replace(worker)
                continue
            task, text = jobs[waiting[0]]
            fields = [task.uid, task.problem, task.answer, task.source]
            worker.start_job(waiting.popleft(), {"task": fields, "text": text}, self._time_limit_s)
            if worker.has_unsent:
                self._selector.register(worker.jobs_fd, selectors.EVENT_WRITE, worker)

    def _handle_events(self, verdicts: dict[int, Verdict]) -> None:
        """Wait for events and handle them, then replace the workers that timed out.

        A worker has timed out if its deadline passed before the events were read, so a reply in time always
        counts, even if this process was suspended.
        """
        now_s = time.monotonic()
        next_deadline_s = min(worker.deadline_s for worker in self._workers)
        for key, _ in self._selector.select(min(max(0.0, next_deadline_s - now_s), _MAX_WAIT_S)):
            worker: VerifierProcess = key.data
            if worker not in self._workers:
                continue  # replaced by an earlier event of this round; its descriptors may be reused
            if key.fd == worker.jobs_fd:
                worker.send()
                if not worker.has_unsent:
                    self._selector.unregister(worker.jobs_fd)
                continue
            try:
                message = worker.receive()
            except WorkerDiedError as error:
                self._end(worker, VerdictReason.ERROR, str(error), verdicts)
                continue
            if message is not None:
                self._handle_message(worker, message, verdicts)
        for worker in [worker for worker in self._workers if worker.deadline_s <= now_s]:
            self._end(worker, VerdictReason.TIMEOUT, "it took too long", verdicts)

    def _handle_message(
        self, worker: VerifierProcess, message: JsonMessage, verdicts: dict[int, Verdict]
    ) -> None:
        if "refused" in message:
            text, hint = message["refused"]
            raise UsageError(text, hint=hint)
        if "ready" in message:
            worker.set_ready()
            self._num_failed_starts = 0
            return
        job = worker.end_job()
        if job is None:
            raise AssertionError("a worker replies only to a job")
        if "failed" in message:
            verdicts[job] = Verdict(reward=0.0, reason=VerdictReason.ERROR)
            self._report(message["failed"])
            return
        reward, reason, extracted = message["verdict"]
        verdicts[job] = Verdict(reward=reward, reason=VerdictReason(reason), extracted=extracted)

    def _end(
        self, worker: VerifierProcess, reason: VerdictReason, what: str, verdicts: dict[int, Verdict]
    ) -> None:
        """Replace a worker that died or timed out; its current job gets a verdict."""
        if worker.job is not None:
            verdicts[worker.job] = Verdict(reward=0.0, reason=reason)
            if reason is VerdictReason.ERROR:
                self._report(f"the worker died: {what}")
        elif not worker.is_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= MAX_FAILED_STARTS:
                raise YaokiError(
                    f"the verifier {self._spec!r} failed to start {MAX_FAILED_STARTS} times in a row: {what}",
                    hint=f"see what `python -m yaoki.rewards.worker {self._spec}` prints",
                )
        self._replace(worker)

    def _start_worker(self) -> None:
        worker = VerifierProcess(self._spec, START_LIMIT_S)
        self._workers.append(worker)
        self._selector.register(worker.replies_fd, selectors.EVENT_READ, worker)

    def _replace(self, worker: VerifierProcess) -> None:
        self._selector.unregister(worker.replies_fd)
        if worker.has_unsent:
            self._selector.unregister(worker.jobs_fd)
        self._workers.remove(worker)
        worker.kill()
        self._start_worker()

    def _report(self, what: str) -> None:
        """Log each kind of failure once: a broken verifier fails on thousands of answers a step."""
        kind = what.partition(":")[0]
        if kind not in self._reported:
            self._reported.add(kind)
            _logger.warning("the verifier %s failed on an answer, which scores 0: %s", self._spec, what)
