"""Several workers on this machine: one command, one progress display, one error.

The first worker has the terminal; each of the others has a log. When one fails or is killed, the others are
ended, and what the first one said is shown once. It knows nothing of what workers do.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from yaoki.errors import PeerLostError, StopRequested
from yaoki.launch.process import (
    Process,
    describe_failure,
    exit_code,
    is_launched,
    last_words,
    log_path,
    start,
)
from yaoki.ranks.environment import STORE_FILE

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LEAVE_S = 10.0
"""How long workers may take to leave by themselves when one of them is gone."""
_SPEAK_S = 2.0
"""How long the first worker, which has the terminal, may take to say what another one has ended with, too."""
_POLL_S = 0.05


def run_workers(num_workers: int, arguments: Sequence[str], logs: Path) -> int:
    """Run `python -m yaoki ARGUMENTS` as so many workers of one run, and wait for them.

    Args:
        logs: directory for the logs of all workers but the first; each is begun anew.

    Returns:
        The exit code of the worker that failed first; 0 if none did, 75 if all were asked to stop.
    """
    with ExitStack() as stack:
        meeting = stack.enter_context(tempfile.TemporaryDirectory(prefix="yaoki-"))
        logs.mkdir(parents=True, exist_ok=True)
        workers: list[Process] = []
        stack.callback(_kill, workers)
        forwarder = stack.enter_context(_Forwarder())
        for rank in range(num_workers):
            log = stack.enter_context(log_path(logs, rank).open("wb")) if rank else None
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)}
            place |= {STORE_FILE: f"{meeting}/store", "GLOO_SOCKET_IFNAME": "lo"}
            workers.append(start(arguments, place, log, death_signal=signal.SIGTERM))
        forwarder.begin(workers)
        while (failed := _failed(workers)) is None and _any_runs(workers):
            time.sleep(_POLL_S)
        if failed is None:
            return max(worker.returncode for worker in workers)
        rank = _first_cause(workers, failed)
        silent = [rank for rank, worker in enumerate(workers) if worker.poll() is None]
        _end(workers)
        if workers[rank].returncode == PeerLostError.exit_code:
            print(_describe_silence(silent), file=sys.stderr)
            return PeerLostError.exit_code
        return _outcome(rank, workers[rank].returncode, logs, forwarder.received)


def num_local_workers() -> int | None:
    """In a worker: how many `run_workers` has started; 1 if nobody has, None if it was another launcher."""
    if STORE_FILE in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None if is_launched() or "WORLD_SIZE" in os.environ else 1


class _Forwarder:
    """A context manager that passes signals on, each once: a second one makes a worker leave at once."""

    def __init__(self) -> None:
        self._workers: Sequence[Process] = ()
        self.received: set[int] = set()

    def __enter__(self) -> "_Forwarder":
        self._previous = {number: signal.signal(number, self._forward) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def begin(self, workers: Sequence[Process]) -> None:
        """From now on to these; what came before, too."""
        self._workers = workers
        for number in self.received:
            self._send(number)

    def _forward(self, number: int, _: FrameType | None) -> None:
        self.received.add(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(number)


def _failed(workers: Sequence[Process]) -> int | None:
    """A worker that has ended in another way than it should."""
    fine = (None, 0, StopRequested.exit_code)
    return next((rank for rank, worker in enumerate(workers) if worker.poll() not in fine), None)


def _first_cause(workers: Sequence[Process], failed: int) -> int:
    """Of the workers that failed, one that did not because another one was gone; it may end a bit later.

    If all of them met the same, the first one, for it has said so already.
    """
    _wait_until(lambda: bool(_causes(workers)) or not _any_runs(workers), _LEAVE_S)
    _wait_until(lambda: workers[0].poll() is not None, _SPEAK_S)
    return next(iter([*_causes(workers), failed]))


def _causes(workers: Sequence[Process]) -> list[int]:
    others = (None, 0, StopRequested.exit_code, PeerLostError.exit_code)
    return [rank for rank, worker in enumerate(workers) if worker.poll() not in others]


def _any_runs(workers: Sequence[Process]) -> bool:
    return any(worker.poll() is None for worker in workers)


def _wait_until(is_so: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < end:
        time.sleep(_POLL_S)


def _outcome(rank: int, code: int, logs: Path, received: set[int]) -> int:
    """Shows why all were ended; the exit code of it."""
    if -code in received:
        return StopRequested.exit_code  # it had not begun to listen, so there was nothing to save
    if code - 128 in received:
        print(f"{signal.Signals(code - 128).name} came twice: all left at once", file=sys.stderr)
        return code
    log = log_path(logs, rank) if rank else None
    print(describe_failure(rank, code, last_words(log) if log else "", log), file=sys.stderr)
    return exit_code(code)


def _describe_silence(silent: Sequence[int]) -> str:
    """No worker has failed by itself; some did not hear from others that were still there."""
    names = f"worker {', '.join(map(str, silent))} did not" if silent else "the workers did not all"
    return (
        f"error: {names} answer for run.peer_timeout_s; all were ended\n\n"
        "hint: see what it was doing; the same command resumes the run"
    )


def _end(workers: Sequence[Process]) -> None:
    """Ask all to leave; kill those that do not."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    _wait_until(lambda: not _any_runs(workers), _LEAVE_S)
    _kill(workers)


def _kill(workers: Sequence[Process]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
