"""Verdicts under a hard time limit, from worker processes that may hang, crash or eat memory.

One thread and a selector: each worker has at most one job, whose clock starts when it is sent. A worker
that overruns is killed and replaced; the answer that did it scores 0. What is verified is not known
here; the protocol is described in `verifier_worker.py`.
"""

import logging
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from yaoki.data.verifier_process import JsonMessage, VerifierProcess, WorkerDiedError
from yaoki.errors import UsageError, YaokiError
from yaoki.types import Task, Verdict, VerdictReason

START_LIMIT_S = 120.0
MAX_FAILED_STARTS = 3
_LONGEST_WAIT_S = 0.1
"""Between two polls, so that a stop is not kept waiting by a slow answer."""

_logger = logging.getLogger(__name__)


class VerifierPool:
    """A context manager: workers run from entering until leaving."""

    def __init__(self, spec: str, num_workers: int, time_limit_s: float) -> None:
        """`spec` as for `load_verifier`; `time_limit_s` is wall time per answer."""
        if num_workers < 1 or not time_limit_s > 0:
            raise UsageError(
                f"a verifier pool of {num_workers} workers with a limit of {time_limit_s} s",
                hint="both must be positive",
            )
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers. May be called twice."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._selector.close()

    def verify(self, jobs: Sequence[tuple[Task, str]], poll: Callable[[], None]) -> list[Verdict]:
        """One verdict per job, in order; `poll` is called often and may raise, which ends the work.

        No task and no text makes this raise or hang: what runs into the time limit is TIMEOUT, what
        breaks the verifier is ERROR, both with reward 0. Only if workers cannot be started any more it
        raises: UsageError or YaokiError.
        """
        waiting = deque(range(len(jobs)))
        verdicts: dict[int, Verdict] = {}
        try:
            while len(verdicts) < len(jobs):
                poll()
                self._hand_out(jobs, waiting)
                self._handle_events(verdicts)
        finally:
            # There are such workers only after an exception (a stop signal's, say): their answers must
            # not be taken for answers to the next call's jobs.
            for worker in [worker for worker in self._workers if worker.job is not None]:
                self._replace(worker)
        return [verdicts[job] for job in range(len(jobs))]

    def _hand_out(self, jobs: Sequence[tuple[Task, str]], waiting: deque[int]) -> None:
        """Give a job to each worker that has none; one that died while idle is replaced first."""
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
        """Wait until something happens; take in what was said; then end the workers that are overdue.

        Overdue are those whose limit had passed before looking, so a reply in time always counts, however
        long this process slept.
        """
        now_s = time.monotonic()
        next_deadline_s = min(worker.deadline_s for worker in self._workers)
        for key, _ in self._selector.select(min(max(0.0, next_deadline_s - now_s), _LONGEST_WAIT_S)):
            worker: VerifierProcess = key.data
            if worker not in self._workers:
                continue  # replaced by an earlier event of this round; its descriptors are used anew
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
                self._take_in(worker, message, verdicts)
        for worker in [worker for worker in self._workers if worker.deadline_s <= now_s]:
            self._end(worker, VerdictReason.TIMEOUT, "it took too long", verdicts)

    def _take_in(self, worker: VerifierProcess, message: JsonMessage, verdicts: dict[int, Verdict]) -> None:
        if "refused" in message:
            text, hint = message["refused"]
            raise UsageError(text, hint=hint)
        if "ready" in message:
            worker.set_ready()
            self._num_failed_starts = 0
            return
        job = worker.end_job()
        if job is None:
            raise AssertionError("a worker answers only when it was asked")
        if "failed" in message:
            verdicts[job] = Verdict(reward=0.0, reason=VerdictReason.ERROR)
            self._report(message["failed"])
            return
        reward, reason, extracted = message["verdict"]
        verdicts[job] = Verdict(reward=reward, reason=VerdictReason(reason), extracted=extracted)

    def _end(
        self, worker: VerifierProcess, reason: VerdictReason, what: str, verdicts: dict[int, Verdict]
    ) -> None:
        """Replace a dead or overdue worker; the job in hand gets its verdict."""
        if worker.job is not None:
            verdicts[worker.job] = Verdict(reward=0.0, reason=reason)
            if reason is VerdictReason.ERROR:
                self._report(f"the worker died: {what}")
        elif not worker.is_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= MAX_FAILED_STARTS:
                raise YaokiError(
                    f"the verifier {self._spec!r} failed to start {MAX_FAILED_STARTS} times in a row: {what}",
                    hint=f"see what `python -m yaoki.data.verifier_worker {self._spec}` prints",
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
        """Each kind of failure is logged once: a broken verifier fails on thousands of answers a step."""
        kind = what.partition(":")[0]
        if kind not in self._reported:
            self._reported.add(kind)
            _logger.warning("the verifier %s failed on an answer, which scores 0: %s", self._spec, what)
