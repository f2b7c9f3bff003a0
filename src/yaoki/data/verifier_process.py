"""One worker process seen from the trainer: starting it, and the bytes to and from it.

Nothing here blocks: pipes are read and written as far as they go. When a worker is overdue, and what
follows from its death, is decided in `verifier_pool.py`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

JsonMessage = dict[str, Any]

_NEVER = float("inf")
_READ_BYTES = 1 << 16
_KILL_WAIT_S = 5.0


class WorkerDiedError(Exception):
    """The process has ended, or says something that is no reply."""


class VerifierProcess:
    """A worker that is starting, idle, or busy with one job."""

    def __init__(self, spec: str, start_limit_s: float) -> None:
        self.job: int | None = None
        """The caller's number for the job in hand."""
        self.is_ready = False
        self.deadline_s = time.monotonic() + start_limit_s
        """When the start or the job in hand is overdue (monotonic clock); infinite while idle."""
        self._unsent = memoryview(b"")
        self._received = bytearray()
        # A session of its own: Ctrl-C in the terminal is for the trainer, which still needs its workers.
        # A fixed hash seed: sympy walks sets, and equal answers must get equal verdicts.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "yaoki.data.verifier_worker", spec],
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
    def pid(self) -> int:
        return self._process.pid

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
        """Send a job as far as the pipe takes it; its clock starts now."""
        self.job = job
        self._unsent = memoryview(json.dumps(message).encode("ascii") + b"\n")
        self.deadline_s = time.monotonic() + time_limit_s
        self.send()

    def end_job(self) -> int | None:
        """The number of the job in hand, which is over."""
        job, self.job, self.deadline_s = self.job, None, _NEVER
        return job

    def send(self) -> None:
        """Send what the pipe takes. A broken pipe is passed over: `receive` will find the death."""
        try:
            sent = os.write(self.jobs_fd, self._unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]

    def receive(self) -> JsonMessage | None:
        """The reply, once it is complete. WorkerDiedError if there will be none."""
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
            raise WorkerDiedError(f"it sent something that is no reply: {error}") from error
        return message

    def kill(self) -> None:
        """End the process, whatever it is doing, and close its pipes."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._exit_code()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _exit_code(self) -> int | None:
        """Waits for a process that is ending; one stuck in the kernel is left to its fate."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=_KILL_WAIT_S)
        return None
