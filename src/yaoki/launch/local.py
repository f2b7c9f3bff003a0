"""`--workers N`: workers of a run as processes on this machine, with one display and one error.

Rank 0 has the terminal; each of the others writes to a log. When a worker fails or is killed, the others are
stopped and its error is shown once.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from yaoki.errors import PeerLostError, StopRequested
from yaoki.launch.process import (
    STOP_SIGNALS,
    Process,
    describe_failure,
    error_tail,
    is_launched,
    log_path,
    shell_code,
    start,
    wait_until,
)
from yaoki.ranks.environment import STORE_FILE

_EXIT_S = 10.0
"""Time that workers have to exit by themselves when one of them has failed."""
_RANK_0_EXIT_S = 2.0
"""Time that rank 0, which has the terminal, has to show an error that it shares with other ranks."""
_POLL_S = 0.05


def run_workers(num_workers: int, arguments: Sequence[str], logs: Path) -> int:
    """Run `python -m yaoki ARGUMENTS` as `num_workers` workers of one run, and wait for them.

    Args:
        logs: directory for the logs of all workers but rank 0; each is overwritten.

    Returns:
        The exit code of the worker that failed first; 0 if none did, 75 if all stopped on request.
    """
    with ExitStack() as stack:
        rendezvous = stack.enter_context(tempfile.TemporaryDirectory(prefix="yaoki-"))
        logs.mkdir(parents=True, exist_ok=True)
        workers: list[Process] = []
        stack.callback(_kill, workers)
        forwarder = stack.enter_context(_Forwarder())
        for rank in range(num_workers):
            log = stack.enter_context(log_path(logs, rank).open("wb")) if rank else None
            variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)}
            variables |= {STORE_FILE: f"{rendezvous}/store", "GLOO_SOCKET_IFNAME": "lo"}
            workers.append(start(arguments, variables, log, death_signal=signal.SIGTERM))
        forwarder.forward_to(workers)
        while not _failed(workers) and _any_runs(workers):
            time.sleep(_POLL_S)
        failed = _failed(workers)
        if not failed:
            return max(worker.returncode for worker in workers)
        rank = _first_cause(workers, failed[0])
        silent = [rank for rank, worker in enumerate(workers) if worker.poll() is None]
        _end(workers)
        if workers[rank].returncode == PeerLostError.exit_code:
            print(_describe_silence(silent), file=sys.stderr)
            return PeerLostError.exit_code
        return _report(rank, workers[rank].returncode, logs, forwarder.received)


def num_local_workers() -> int | None:
    """In a worker: the number that `run_workers` started; 1 without a launcher, None for another launcher."""
    if STORE_FILE in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None if is_launched() or "WORLD_SIZE" in os.environ else 1


class _Forwarder:
    """A context manager that forwards stop signals to the workers; a second one makes them exit at once."""

    def __init__(self) -> None:
        self._workers: Sequence[Process] = ()
        self.received: set[int] = set()

    def __enter__(self) -> "_Forwarder":
        self._previous = {number: signal.signal(number, self._forward) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def forward_to(self, workers: Sequence[Process]) -> None:
        """Forward to these workers, also signals that were received before."""
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


def _failed(workers: Sequence[Process], *, but_not: int = 0) -> list[int]:
    """Ranks of the workers that neither run, nor finished, nor stopped, nor exited with code `but_not`."""
    fine = (None, 0, StopRequested.exit_code, but_not)
    return [rank for rank, worker in enumerate(workers) if worker.poll() not in fine]


def _first_cause(workers: Sequence[Process], failed: int) -> int:
    """The lowest rank that failed for another reason than a lost peer, or `failed` if none did.

    Waits for such a worker, and for rank 0, which shows its error on the terminal.
    """

    def causes() -> list[int]:
        return _failed(workers, but_not=PeerLostError.exit_code)

    wait_until(lambda: bool(causes()) or not _any_runs(workers), _EXIT_S, _POLL_S)
    wait_until(lambda: workers[0].poll() is not None, _RANK_0_EXIT_S, _POLL_S)
    return next(iter([*causes(), failed]))


def _any_runs(workers: Sequence[Process]) -> bool:
    return any(worker.poll() is None for worker in workers)


def _report(rank: int, code: int, logs: Path, received: set[int]) -> int:
    """Print why the run ended; returns the exit code for it."""
    if -code in received:
        return StopRequested.exit_code  # killed before it had installed its handlers, with nothing to save
    if code - 128 in received:
        name = signal.Signals(code - 128).name
        print(f"{name} received twice: the workers exited without saving", file=sys.stderr)
        return code
    log = log_path(logs, rank) if rank else None
    print(describe_failure(rank, code, error_tail(log) if log else "", log), file=sys.stderr)
    return shell_code(code)


def _describe_silence(silent: Sequence[int]) -> str:
    """The error if no worker failed by itself, but some lost a peer that still runs."""
    names = f"worker {', '.join(map(str, silent))} did not" if silent else "the workers did not all"
    return (
        f"error: {names} respond for run.peer_timeout_s; all workers were stopped\n\n"
        "hint: find out what it was doing; the same command resumes the run"
    )


def _end(workers: Sequence[Process]) -> None:
    """Terminate all workers; kill those that do not exit."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    wait_until(lambda: not _any_runs(workers), _EXIT_S, _POLL_S)
    _kill(workers)


def _kill(workers: Sequence[Process]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
