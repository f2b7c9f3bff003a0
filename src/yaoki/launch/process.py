"""Worker processes: starting them, ending them with their launcher, and reading and showing their errors."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from yaoki.ranks.environment import DEATH_SIGNAL, LAUNCHER_PID

Process = subprocess.Popen[bytes]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to save and exit."""

_SET_PARENT_DEATH_SIGNAL = 1
_RANK = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)
"""torch's prefix of each line of a traceback, where there are process groups."""


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: BinaryIO | None,
    *,
    death_signal: signal.Signals,
    directory: Path | None = None,
) -> Process:
    """Run `python -m yaoki ARGUMENTS` as a worker of this process.

    Args:
        environment: set in addition to this process's variables.
        log: receives stdout and stderr; None for this process's terminal.
        death_signal: sent to the worker when this process (the thread that calls this) ends.
        directory: working directory; None for this process's own.
    """
    own = {LAUNCHER_PID: str(os.getpid()), DEATH_SIGNAL: str(int(death_signal))}
    return subprocess.Popen(
        [sys.executable, "-m", "yaoki", *arguments],
        env={**os.environ, **own, **environment},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # the terminal signals the launcher only, which forwards each signal once
    )


def end_with_launcher() -> None:
    """In a worker: make the kernel send a signal when the launcher ends, in whatever way."""
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return
    number = int(os.environ[DEATH_SIGNAL])
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)
    if os.getppid() != int(launcher):  # it had ended before
        os.kill(os.getpid(), number)


def is_launched() -> bool:
    """Whether this process is a worker of a launcher, which shows the first error of all workers."""
    return LAUNCHER_PID in os.environ


def log_path(logs: Path, rank: int) -> Path:
    """The log of a worker without a terminal."""
    return logs / f"worker-{rank:03d}.log"


def shell_code(code: int) -> int:
    """A process's exit code as shells give it: 128 + the signal's number, where Python has it negative."""
    return code if code >= 0 else 128 - code


def error_tail(log: Path, begin: int = 0) -> str:
    """The error of Yaoki or the traceback at the end of a log, from byte `begin` on; empty without one."""
    text = "\n" + log.read_bytes()[begin:].decode("utf-8", errors="replace")
    text = _RANK.sub("", text)
    found = max(text.rfind("\nerror:"), text.rfind("\nTraceback"))
    return text[found:].strip() if found >= 0 else ""


def describe_exit(rank: int, code: int) -> str:
    """How a worker failed, in words."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return f"worker {rank} {how}"


def describe_failure(rank: int, code: int, error: str, log: Path | None) -> str:
    """The message for a failure that ended the run; `log` is None if the worker has the terminal."""
    if log is None and code > 0:
        return f"that was worker {rank}, exit code {code}; the other workers were stopped"
    summary = f"error: {describe_exit(rank, code)}; the other workers were stopped"
    where = "" if log is None else f"its log is {log}; "
    hint = f"hint: {where}the same command resumes the run"
    return "\n\n".join(part for part in (error, summary, hint) if part)


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float) -> None:
    """Return when the condition holds, or after a timeout."""
    end_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(poll_s)


class LogTail:
    """Prints what is appended to a log, in complete lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = path.stat().st_size if path.exists() else 0

    def print_new(self) -> None:
        """Print the lines since the last call on stderr."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        lines = new[: new.rfind(b"\n") + 1]
        self._shown += len(lines)
        sys.stderr.write(lines.decode("utf-8", errors="replace"))
        sys.stderr.flush()
