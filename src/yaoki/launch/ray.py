"""`--ray`: workers on a Ray cluster, an existing one or a temporary one on this machine.

Ray Train places the workers, detects lost machines, and restarts the group with as many workers as there is
room for. Each worker is a process of its own below Ray's: Ray runs training in a thread, where signals cannot
be handled, and only a process can be ended reliably before its successor starts. A new group resumes from
the run directory, which all machines share; Ray's own checkpoints are not used.
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
    STOP_SIGNALS,
    LogTail,
    Process,
    describe_exit,
    describe_failure,
    error_tail,
    log_path,
    shell_code,
    start,
    wait_until,
)

_POLL_S = 0.25
_EXIT_S = 10.0
"""Time that a worker has to exit by itself when another one has failed for good."""
_LOCK_S = 120.0
"""Time that a new group waits for the lock that the previous one held."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # of 40 s each, for a cluster that does not respond
    "GLOO_SOCKET_IFNAME": "lo",  # inherited only by workers of a cluster that is started here
}


@dataclass(frozen=True)
class Job:
    """The command that the workers run."""

    arguments: tuple[str, ...]
    """Command-line arguments; paths in them are relative to `directory`."""
    directory: Path
    """Working directory; must exist on all machines."""
    logs: Path
    """Directory for the logs of all workers, on a shared path."""
    metrics: Path
    """A file with one line per finished step."""
    lock_holder: Callable[[], str | None]
    """Returns the process that holds the run's lock, or None."""


def run_on_ray(job: Job, min_workers: int, max_workers: int, *, may_use_gpus: bool) -> int:
    """Train with as many workers as there is room for, from `min_workers` to `max_workers`.

    A group that dies or loses a machine is restarted, unless it would fail again: after an error of Yaoki
    other than a lost peer, or after several groups that finished no step.

    Returns:
        The exit code of the worker that ended it; 75 if all stopped on request.

    Raises:
        UsageError: Ray is not installed, or the cluster at RAY_ADDRESS does not respond.
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
        coordinator = _start_coordinator()
        log = LogTail(log_path(job.logs, 0))
        training = _RayTraining(job, coordinator, (min_workers, max_workers), use_gpus=use_gpus)
        with _FirstSignal() as stop:
            if not _supervise(training, coordinator, log, stop):
                return StopRequested.exit_code  # no worker was started yet
        training.require_success()
        return _report(_call(coordinator.ending), job)


def _supervise(training: "_RayTraining", coordinator: Any, log: LogTail, stop: "_FirstSignal") -> bool:
    """Print logs and messages until training ends. False if it was asked to stop before a worker started."""
    was_asked, num_shown = False, 0
    is_running = True
    while is_running:
        is_running = training.is_running  # read first: one more round after the end shows the rest
        if stop.received and not was_asked:
            was_asked = True
            if not _call(coordinator.ask_to_stop):
                return False
        log.print_new()
        messages = _call(coordinator.messages, num_shown)
        num_shown += len(messages)
        for message in messages:
            print(f"ray: {message}", file=sys.stderr)
        time.sleep(_POLL_S)
    return True


def _report(ending: Ending | None, job: Job) -> int:
    """Print why training failed, if it did; returns the exit code."""
    if ending is None:
        raise YaokiError("Ray ended the workers without an error", hint="the same command resumes the run")
    if ending.is_failure:
        log = log_path(job.logs, ending.rank) if ending.rank else None
        print(describe_failure(ending.rank, ending.code, ending.error, log), file=sys.stderr)
    return shell_code(ending.code)


class _FirstSignal:
    """A context manager that notes the first stop signal, and then restores the previous handlers."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "_FirstSignal":
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self.received = True
        self.__exit__()


@contextmanager
def _cluster(num_cpus: int) -> Iterator[Mapping[str, float]]:
    """Connect to a cluster (RAY_ADDRESS, or `ray start` on this machine), or start one that ends with the
    context. Yields the cluster's resources."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    own: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        try:
            ray.init(**options, **own)
        except ValueError:  # an existing cluster has its own number of CPUs
            ray.init(**options)
    except ConnectionError as error:
        raise UsageError(
            f"no Ray cluster responds: {error}",
            hint="check RAY_ADDRESS; or run `ray stop` to remove an old cluster, and one is started here",
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _warn_of_waiting(resources: Mapping[str, float], min_workers: int, *, use_gpus: bool) -> None:
    kind = "GPU" if use_gpus else "CPU"
    if (available := int(resources.get(kind, 0))) < min_workers:
        needs = f"{min_workers} workers need a {kind} each"
        print(f"ray: {needs}, the cluster has {available}; waiting for more", file=sys.stderr)


def _start_coordinator() -> Any:
    """The coordinator as an actor on this machine, so that it survives the loss of any other."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote()


def _call(method: Any, *arguments: Any) -> Any:
    """Call a method of the coordinator's actor and wait for its result."""
    import ray

    return ray.get(method.remote(*arguments))


class _RayTraining:
    """Ray Train's `fit` in a thread, as the main thread has to handle signals."""

    def __init__(self, job: Job, coordinator: Any, num_workers: tuple[int, int], *, use_gpus: bool) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        def work() -> None:
            _run_worker(job, coordinator)

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
        """YaokiError if Ray itself failed."""
        if self._error is not None:
            raise YaokiError(f"Ray failed: {self._error}", hint="the same command resumes the run")

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - a thread's edge: raised in the main thread
            self._error = f"{type(error).__name__}: {error}"


def _run_worker(job: Job, coordinator: Any) -> None:
    """Run one worker to its end, in a thread of Ray's process. RuntimeError makes Ray restart the group."""
    from ray.train import get_context

    context = get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    with _rendezvous(rank) as rendezvous:
        is_stopping, _ = _call(coordinator.commands)
        if is_stopping:
            _call(coordinator.ended, Ending(rank, StopRequested.exit_code, ""))
            return
        if rank == 0 and _call(coordinator.begin, size, _num_lines(job.metrics)):
            # The previous group's machine may be lost, and the shared file system not yet aware of it.
            wait_until(lambda: job.lock_holder() is None, _LOCK_S, _POLL_S)
        variables = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(context.get_local_rank())}
        ending = _run(job, rank, variables | rendezvous, coordinator)
        if ending.code == PeerLostError.exit_code:
            # The lost worker may have failed for good, or the run may be stopping.
            wait_until(lambda: any(_call(coordinator.commands)), _EXIT_S, _POLL_S)
        if _call(coordinator.ended, ending):
            raise RuntimeError(describe_exit(ending.rank, ending.code))


@contextmanager
def _rendezvous(rank: int) -> Iterator[dict[str, str]]:
    """Variables for the group's rendezvous: a TCP store in the Ray process of rank 0.

    Workers are its clients, like workers of torchrun's agent: the port is open before it is announced, and
    the store outlives each of them. Ray's own store contains keys of Ray's process group.
    """
    from ray.train.collective import broadcast_from_rank_zero
    from torch._C._distributed_c10d import TCPStore

    address = os.environ["MASTER_ADDR"]  # set by Ray
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = broadcast_from_rank_zero(store.port if store else None)
    yield {"MASTER_ADDR": address, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": str(True)}
    del store


def _run(job: Job, rank: int, variables: Mapping[str, str], coordinator: Any) -> Ending:
    """Start the worker's process and relay the coordinator's commands to it until it ends."""
    path = log_path(job.logs, rank)
    with path.open("ab") as log:
        begin = log.tell()
        worker = start(job.arguments, variables, log, death_signal=signal.SIGKILL, directory=job.directory)
    try:
        code = _relay_commands(worker, coordinator)
    finally:
        worker.kill()  # if the driver has ended
        worker.wait()
    return Ending(rank, code, error_tail(path, begin))


def _relay_commands(worker: Process, coordinator: Any) -> int:
    was_asked, kill_s = False, float("inf")
    while (code := worker.poll()) is None:
        is_stopping, is_over = _call(coordinator.commands)
        if (is_stopping or is_over) and not was_asked:
            was_asked = True
            worker.terminate()
        if is_over:
            kill_s = min(kill_s, time.monotonic() + _EXIT_S)
        if time.monotonic() > kill_s:
            worker.kill()
        time.sleep(_POLL_S)
    return code


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
