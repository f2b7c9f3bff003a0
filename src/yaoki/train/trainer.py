"""The training loop. The state of a run is in `state`; see state.py for the inventory.

There is no branch on device, engine or number of ranks in here, nor on whether a step is new or replayed:
what the journal holds is not sampled again, that is all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yaoki.checkpoint.io.checkpointer import Checkpointer
from yaoki.config.schema import Config
from yaoki.errors import StopRequested
from yaoki.journal.journal import NullJournal, RolloutJournal
from yaoki.rollout.collect import Collector
from yaoki.rollout.engine import RolloutEngine
from yaoki.runs.environment import next_history
from yaoki.train.accuracy import accuracy
from yaoki.train.console import Console
from yaoki.train.recorder import StepRecorder
from yaoki.train.state import RunState
from yaoki.train.step_metrics import StepResult, Stopwatch, step_row, step_timing
from yaoki.train.stop import StopSignal
from yaoki.train.weight_sync import WeightSync
from yaoki.types import Prompt


@dataclass
class Trainer:
    """The parts of one attempt, wired together and restored; the engine holds the policy's weights."""

    config: Config
    state: RunState
    engine: RolloutEngine
    collector: Collector
    journal: RolloutJournal | NullJournal
    eval_prompts: Sequence[Prompt]
    checkpointer: Checkpointer
    weight_sync: WeightSync
    recorder: StepRecorder
    console: Console
    stop: StopSignal
    boundary_checks: Sequence[Callable[[], None]]
    """Called between steps; each raises, or asks `stop`, if the run should not go on."""
    environment_digest: str
    """Digest of everything that this attempt's bits depend on besides the state."""

    def train(self, *, measure_at_end: bool) -> float | None:
        """Train until train.steps; returns the final held-out accuracy, if it is to be measured.

        Raises StopRequested when asked to stop. What can be saved then is saved: before the update of a step
        the last boundary and this step's rollouts; during it the rollouts, which give the same step again.
        """
        try:
            self._boundary()
            while self.state.progress.global_step < self.config.train.steps:
                self._step()
                self._boundary()
            found = self.evaluate() if measure_at_end else None
            self.checkpointer.finish()
            return found
        except StopRequested:
            self.checkpointer.save_held()
            self.journal.sync()
            raise

    def _step(self) -> None:
        """One step. Until `release` the state is frozen: the checkpointer may be writing it.

        1. Evaluate the policy on held-out prompts, if it is due.
        2. Generate: sample and judge a group of completions per prompt, except for those that the journal
           holds.
        3. Make the rollouts durable before anything is learned from them.
        4. Score: log-probabilities under policy and reference, values; then credit for every token.
        5. Update the critic, then the policy; adapt the KL coefficient; refresh the reference if an epoch has
           ended.
        6. Push the new weights to the engine and verify that it computes with them.
        7. Fingerprint the new state, compare it with what earlier attempts recorded of this step, log its
           row.
        """
        state, progress, learner, kl = self.state, self.state.progress, self.state.learner, self.state.kl
        step, kl_coef, epoch, watch = progress.global_step + 1, kl.coef, state.loader.epoch, Stopwatch()
        with watch("evaluate"):
            held_out = self._evaluate_if_due(step)
        with watch("generate"):
            prompts = state.loader.next_batch()
            self.journal.open_step(step, progress.policy_version, prompts, state.world.loop.wait)
            rollouts = self.collector.training(prompts, step, self.console.generating)
        with watch("journal"):
            self.journal.sync()
        self.engine.sleep()
        learner.onload()
        with watch("score"):
            experience = learner.score(rollouts, self.stop.poll_together)
            experience = learner.with_advantages(experience, kl_coef)
        self.checkpointer.release()
        with watch("update"):
            stats = learner.update(experience, step, kl_coef, self.stop.poll_together)
        self.stop.made_progress()
        kl_to_ref = learner.mean_kl_to_ref(experience)
        kl.update(kl_to_ref, len(rollouts))
        progress.advance(prompts, rollouts, stats, next_history(progress.history, self.environment_digest))
        if self.config.kl.refresh_reference_every_epoch and state.loader.epoch > epoch:
            learner.refresh_reference()
            progress.reference_version = progress.policy_version
        with watch("sync"):
            self.engine.wake()
            expected = self.weight_sync.push(progress.policy_version)
            learner.offload()  # before the engine allocates its cache, to compute
            self.weight_sync.verify(progress.policy_version, expected)
        with watch("fingerprint"):
            fingerprint = state.fingerprint()
        done = StepResult(step, rollouts, experience, stats, kl_coef, kl_to_ref, held_out, fingerprint)
        self._record(done, watch)

    def _boundary(self) -> None:
        """Hand the frozen state to the checkpointer, which writes it if that is due; stop if that was asked
        for."""
        step = self.state.progress.global_step
        is_last = step >= self.config.train.steps
        self.checkpointer.save_if_due(self.state.capture(), step, is_last=is_last)
        for check in self.boundary_checks:
            check()
        self.stop.poll_together()

    def _evaluate_if_due(self, step: int) -> float | None:
        """Held-out accuracy before `step`, if it is due; what an earlier attempt recorded is not measured
        again."""
        progress, every = self.state.progress, self.config.eval.every_steps
        if not every or (step - 1) % every:
            return None
        recorded = self.recorder.recorded(step, next_history(progress.history, self.environment_digest))
        if recorded is None:
            return self.evaluate()
        progress.note_accuracy(recorded.accuracy)
        return recorded.accuracy

    def evaluate(self) -> float | None:
        """Held-out accuracy of the current policy (pass@1), with the same seeds every time; None without
        prompts."""
        if not self.eval_prompts:
            return None
        rollouts = self.collector.evaluation(self.eval_prompts, self.console.evaluating)
        found = accuracy(rollouts).pass_at_1
        self.state.progress.note_accuracy(found)
        return found

    def _record(self, done: StepResult, watch: Stopwatch) -> None:
        """Account for the time of a step, and write its row."""
        stall_s, step_s = self.checkpointer.take_stall_s(), watch.total_s
        lineage = self.state.lineage
        lineage.train_seconds += step_s + stall_s
        timing = step_timing(
            watch,
            step_s,
            done.rollouts,
            num_reused=self.journal.num_reused,
            stall_s=stall_s,
            train_s=lineage.train_seconds,
        )
        row = step_row(done, timing, lineage.attempt, self.state.loader.epoch, self.state.progress.history)
        self.recorder.record(row)
        self.console.samples(done.step, done.rollouts)
