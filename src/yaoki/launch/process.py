"""A worker as a process: how a launcher starts it, what it said at its end, how it ends with its launcher.

It knows nothing of what workers do, nor of how many there are.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from yaoki.ranks.environment import DEATH_SIGNAL, LAUNCHER_PID

Process = subprocess.Popen[bytes]

_SET_PARENT_DEATH_SIGNAL = 1
_RANK = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)
"""Before each line of a traceback, where torch has process groups."""


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
        environment: what is set beside this process's own variables.
        log: where it says what it has to say; None for this process's own terminal.
        death_signal: what the worker gets when this process (the thread that calls this) is gone.
        directory: where it runs; None for this process's own.
    """
    own = {LAUNCHER_PID: str(os.getpid()), DEATH_SIGNAL: str(int(death_signal))}
    return subprocess.Popen(
        [sys.executable, "-m", "yaoki", *arguments],
        env={**os.environ, **own, **environment},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # signals of the terminal go to the launcher, which passes them on once
    )


def end_with_launcher() -> None:
    """In a worker: have the system send a signal when its launcher is gone, however that came about."""
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return
    number = int(os.environ[DEATH_SIGNAL])
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)
    if os.getppid() != int(launcher):  # it was gone before that
        os.kill(os.getpid(), number)


def is_launched() -> bool:
    """Whether a launcher shows the first error of all workers."""
    return LAUNCHER_PID in os.environ


def log_path(logs: Path, rank: int) -> Path:
    """Where a worker says what it has to say, if not on the terminal."""
    return logs / f"worker-{rank:03d}.log"


def exit_code(code: int) -> int:
    """What a shell calls the exit code of a process; Python has the signal, negative."""
    return code if code >= 0 else 128 - code


def last_words(log: Path, begin: int = 0) -> str:
    """The error at the end of a log, from byte `begin` on: Yaoki's own or a traceback; or nothing."""
    said = "\n" + log.read_bytes()[begin:].decode("utf-8", errors="replace")
    said = _RANK.sub("", said)
    found = max(said.rfind("\nerror:"), said.rfind("\nTraceback"))
    return said[found:].strip() if found >= 0 else ""


def describe_end(rank: int, code: int) -> str:
    """In words, how a worker ended."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return f"worker {rank} {how}"


def describe_failure(rank: int, code: int, words: str, log: Path | None) -> str:
    """What is shown, once, when a worker's failure has ended all; `log` is where it spoke, if not here."""
    if log is None and code > 0:
        return f"that was worker {rank}, exit code {code}; the others were ended"
    error = f"error: {describe_end(rank, code)}; the others were ended"
    where = "" if log is None else f"its log is {log}; "
    hint = f"hint: {where}the same command resumes the run"
    return "\n\n".join(part for part in (words, error, hint) if part)


class Follower:
    """From the end that the log has now; whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        """What has come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._shown += len(whole)
        sys.stderr.write(whole.decode("utf-8", errors="replace"))
        sys.stderr.flush()
