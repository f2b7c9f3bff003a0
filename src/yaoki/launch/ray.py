"""Workers on a Ray cluster: an existing one, or one on this machine for as long as the command runs.

Ray Train gives each worker a place, notices lost machines, and starts the group again with as many workers as
there is room for. A worker is a process of its own below Ray's, started as torchrun would: Ray runs training
in a thread, where signals cannot be handled, and only a process can be ended for sure before its successor
begins. What a new group goes on from is the run directory, which all machines share; Ray's own checkpoints
are not used. It knows nothing of what workers do. The only file that knows Ray.
"""

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from yaoki.errors import PeerLostError, StopRequested, UsageError, YaokiError
from yaoki.launch.coordinator import Coordinator, Ending
from yaoki.launch.process import (
    Follower,
    Process,
    describe_end,
    describe_failure,
    exit_code,
    last_words,
    log_path,
    start,
)

_POLL_S = 0.25
_LEAVE_S = 10.0
"""How long a worker may take to leave by itself when another one has failed for good."""
_LOCK_S = 120.0
"""How long a new group waits for the last one to let go of the run."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # of 40 s each, for a cluster that does not answer
    "GLOO_SOCKET_IFNAME": "lo",  # reaches only the workers of a cluster that is started here
}


@dataclass(frozen=True)
class Job:
    """What the workers run."""

    arguments: tuple[str, ...]
    """Of the command line; paths in it are relative to `directory`."""
    directory: Path
    """Where the command was given; it must be there on all machines."""
    logs: Path
    """Directory for the logs of all workers, on a path that the machines share."""
    metrics: Path
    """A file that has a line for each finished step."""
    lock_holder: Callable[[], str | None]
    """Who trains the run now, or None."""


def run_on_ray(job: Job, min_workers: int, max_workers: int, *, may_use_gpus: bool) -> int:
    """Train with as many workers as there is room for, from `min_workers` to `max_workers`.

    A group that dies or loses a machine is started again. What would happen again ends it: an error that a
    worker can name (other than the loss of another one), and several groups that finish no step.

    Returns:
        The exit code of the worker that ended it; 75 if all were asked to stop.

    Raises:
        UsageError: Ray is not installed, or there is no cluster where there should be one.
        YaokiError: Ray itself failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--ray needs Ray, which is not installed", hint="pip install 'yaoki[ray]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    job.logs.mkdir(parents=True, exist_ok=True)
    with _cluster(max_workers) as resources:
        use_gpus = may_use_gpus and resources.get("GPU", 0) > 0
        _warn_of_waiting(resources, min_workers, use_gpus=use_gpus)
        coordinator = _open_desk()
        log = Follower(log_path(job.logs, 0))
        fit = _Fit(job, coordinator, (min_workers, max_workers), use_gpus=use_gpus)
        with _FirstSignal() as stop:
            if not _watch(fit, coordinator, log, stop):
                return StopRequested.exit_code  # no worker has been started yet
        fit.require_success()
        return _outcome(_ask(coordinator.ending), job)


def _watch(fit: "_Fit", coordinator: Any, log: Follower, stop: "_FirstSignal") -> bool:
    """Show what happens until the end. False if it was asked to stop before anything began."""
    was_asked, num_heard = False, 0
    is_running = True
    while is_running:
        is_running = fit.is_running  # once more after the end, to see all
        if stop.received and not was_asked:
            was_asked = True
            if not _ask(coordinator.ask_to_stop):
                return False
        log.show()
        news = _ask(coordinator.messages, num_heard)
        num_heard += len(news)
        for line in news:
            print(f"ray: {line}", file=sys.stderr)
        time.sleep(_POLL_S)
    return True


def _outcome(ending: Ending | None, job: Job) -> int:
    """Shows why all were ended, if that is news; the exit code of it."""
    if ending is None:
        raise YaokiError("Ray ended the workers without a word", hint="the same command resumes the run")
    if ending.is_failure:
        log = log_path(job.logs, ending.rank) if ending.rank else None
        print(describe_failure(ending.rank, ending.code, ending.words, log), file=sys.stderr)
    return exit_code(ending.code)


class _FirstSignal:
    """A context manager: the first signal is a request; a second one does what it did before."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "_FirstSignal":
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self.received = True
        self.__exit__()


@contextmanager
def _cluster(num_cpus: int) -> Iterator[Mapping[str, float]]:
    """Connected to the cluster that is there (RAY_ADDRESS, or `ray start` on this machine), or to a new one
    on this machine, which ends with the context. Yields the cluster's resources."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    own: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        try:
            ray.init(**options, **own)
        except ValueError:  # there is one, which has its own number of CPUs
            ray.init(**options)
    except ConnectionError as error:
        raise UsageError(
            f"there is no Ray cluster where there should be one: {error}",
            hint="see to RAY_ADDRESS; or `ray stop` what is left of an old one, and one is started here",
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _warn_of_waiting(resources: Mapping[str, float], min_workers: int, *, use_gpus: bool) -> None:
    kind = "GPU" if use_gpus else "CPU"
    if (there := int(resources.get(kind, 0))) < min_workers:
        needs = f"{min_workers} workers need a {kind} each"
        print(f"ray: {needs}, the cluster has {there}; waiting for more", file=sys.stderr)


def _open_desk() -> Any:
    """The coordinator as an actor, on this machine: what others are lost must not take it with them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote()


def _ask(method: Any, *arguments: Any) -> Any:
    """What a method of the coordinator returns."""
    import ray

    return ray.get(method.remote(*arguments))


class _Fit:
    """Ray Train at work, in a thread: the main thread is for signals."""

    def __init__(self, job: Job, coordinator: Any, num_workers: tuple[int, int], *, use_gpus: bool) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        def work() -> None:
            _work(job, coordinator)

        low, high = num_workers
        size: Any = low if low == high else num_workers
        self._trainer = TorchTrainer(
            work,
            torch_config=TorchConfig(backend="gloo"),  # of Ray's own processes, which only wait
            scaling_config=ScalingConfig(num_workers=size, use_gpu=use_gpus),
            run_config=RunConfig(
                name="train",
                storage_path=str(job.logs / "ray"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
        self._error: str | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def require_success(self) -> None:
        """YaokiError if Ray itself gave up."""
        if self._error is not None:
            raise YaokiError(f"Ray gave up: {self._error}", hint="the same command resumes the run")

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - a thread's edge: raised in the main thread
            self._error = f"{type(error).__name__}: {error}"


def _work(job: Job, coordinator: Any) -> None:
    """One worker, to its end, in a thread of Ray's process. RuntimeError: start the group again."""
    from ray.train import get_context

    context = get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    with _meeting_point(rank) as meeting:
        is_stopping, _ = _ask(coordinator.commands)
        if is_stopping:
            _ask(coordinator.ended, Ending(rank, StopRequested.exit_code, ""))
            return
        if rank == 0 and _ask(coordinator.begin, size, _num_lines(job.metrics)):
            _wait_for_the_last_group(job)
        place = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(context.get_local_rank())}
        ending = _run(job, rank, place | meeting, coordinator)
        if ending.code == PeerLostError.exit_code:
            _wait_for_the_cause(coordinator)
        if _ask(coordinator.ended, ending):
            raise RuntimeError(describe_end(ending.rank, ending.code))


@contextmanager
def _meeting_point(rank: int) -> Iterator[dict[str, str]]:
    """Where the group's workers meet, as variables: a store of their own in the first one's Ray process.

    They are its clients, as workers below torchrun are of its agent: no port is chosen before it is open, and
    the store outlives each of them. Ray's own store has keys of Ray's own process group in it.
    """
    from ray.train.collective import broadcast_from_rank_zero
    from torch._C._distributed_c10d import TCPStore

    address = os.environ["MASTER_ADDR"]  # Ray has set it
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = broadcast_from_rank_zero(store.port if store else None)
    yield {"MASTER_ADDR": address, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": str(True)}
    del store


def _run(job: Job, rank: int, place: Mapping[str, str], coordinator: Any) -> Ending:
    """The worker's process; it does what the coordinator says."""
    path = log_path(job.logs, rank)
    with path.open("ab") as log:
        begin = log.tell()
        worker = start(job.arguments, place, log, death_signal=signal.SIGKILL, directory=job.directory)
    try:
        code = _attend(worker, coordinator)
    finally:
        worker.kill()  # if the driver is gone
        worker.wait()
    return Ending(rank, code, last_words(path, begin))


def _attend(worker: Process, coordinator: Any) -> int:
    was_asked, leave_s = False, float("inf")
    while (code := worker.poll()) is None:
        is_stopping, is_over = _ask(coordinator.commands)
        if (is_stopping or is_over) and not was_asked:
            was_asked = True
            worker.terminate()
        if is_over:
            leave_s = min(leave_s, time.monotonic() + _LEAVE_S)
        if time.monotonic() > leave_s:
            worker.kill()
        time.sleep(_POLL_S)
    return code


def _wait_for_the_cause(coordinator: Any) -> None:
    """A bit, for the worker that was lost may have ended for good, or the run may be stopping."""
    end_s = time.monotonic() + _LEAVE_S
    while not any(_ask(coordinator.commands)) and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def _wait_for_the_last_group(job: Job) -> None:
    """Until it has let go of the run: its machine may be gone, and the shared file system not know it yet."""
    end_s = time.monotonic() + _LOCK_S
    while job.lock_holder() is not None and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
