"""The training loop: one step reads like the algorithm.

evaluate, collect, score, credit, update, push weights, write the row, save. There is no branch on
device, engine or number of ranks in here, nor on whether a step is new or replayed: what the journal holds is
not sampled again, that is all. The state of a run is in `state`; see state.py for the table.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter

from yaoki.checkpoint.io.checkpointer import Checkpointer
from yaoki.config.schema import Config
from yaoki.errors import DivergenceError, StopRequested
from yaoki.journal.metrics import Row
from yaoki.learner.stats import UpdateStats
from yaoki.rl.batch import Experience
from yaoki.rl.losses import masked_mean
from yaoki.rollout.collect import AnswerVerifier, NoLog, collect
from yaoki.rollout.engine import RolloutEngine
from yaoki.runs.environment import next_history
from yaoki.seeding import Purpose
from yaoki.train.accuracy import accuracy
from yaoki.train.console import Console
from yaoki.train.exchange import RolloutExchange, StepJournal
from yaoki.train.resume import RecordedSteps
from yaoki.train.state import RunState
from yaoki.train.step_metrics import Stopwatch, experience_metrics, rollout_digest, rollout_metrics
from yaoki.train.stop import StopSignal
from yaoki.train.trackers import Board
from yaoki.train.weight_sync import WeightSync
from yaoki.types import Prompt, Rollout


@dataclass
class Trainer:
    """The parts of one attempt, wired together and restored; the engine holds the policy's weights."""

    config: Config
    state: RunState
    engine: RolloutEngine
    verifier: AnswerVerifier
    eval_prompts: list[Prompt]
    checkpointer: Checkpointer
    board: Board
    console: Console
    stop: StopSignal
    journal: StepJournal
    witnesses: RecordedSteps
    peers: RolloutExchange
    weight_sync: WeightSync
    space_shortage: Callable[[], str | None]
    """In words, that the disk is nearly full."""
    check_storage: Callable[[], None]
    """Raises what has gone wrong with the copy at run.storage."""
    environment_digest: str
    """What this attempt's bits depend on besides the state."""

    def run(self, *, measure_at_end: bool) -> float | None:
        """Train until train.steps; returns the final held-out accuracy, if it is to be measured.

        Raises StopRequested when asked to stop. What can be saved then is saved: before the update of a step
        the last boundary and this step's rollouts; during it the rollouts, which give the same step again.
        """
        progress = self.state.progress
        try:
            self._boundary()
            while progress.global_step < self.config.train.steps:
                self._step()
                self._boundary()
            found = self._evaluate() if measure_at_end else None
            self.checkpointer.finish()
            return found
        except StopRequested:
            self.checkpointer.save_held()
            self.journal.sync()
            raise

    def _step(self) -> None:
        progress, learner, kl = self.state.progress, self.state.learner, self.state.kl
        step, epoch = progress.global_step, self.state.loader.state().epoch
        start, watch = perf_counter(), Stopwatch()
        with watch("evaluate"):
            held_out = self._evaluate_if_due()
        with watch("generate"):
            rollouts = self._collect(self.state.loader.next_batch())
        with watch("journal"):
            self.journal.sync()
        self.engine.sleep()  # its memory is needed for training
        learner.onload()
        with watch("score"):
            experience = learner.score(rollouts, self.stop.poll_together)
            experience = learner.with_advantages(experience, kl.coef)
            kl_to_ref = self._mean_kl(experience)
        self.checkpointer.release()
        with watch("update"):
            stats = learner.update(experience, step, kl.coef, self.stop.poll_together)
        self.stop.made_progress()
        row = self._row(rollouts, experience, stats) | {"accuracy": held_out, "kl_to_ref": kl_to_ref}
        if kl_to_ref is not None:
            kl.update(kl_to_ref, len(rollouts))
        self._advance(rollouts, stats, epoch)
        with watch("sync"):
            self.engine.wake()
            self.weight_sync.push(progress.policy_version)
        with watch("fingerprint"):
            row["history"] = progress.history
            row["fingerprint"] = {"rollouts": rollout_digest(rollouts), **self.state.fingerprint()}
        self._check_divergence(row)
        self._record(row, watch, perf_counter() - start)
        self.console.samples(progress.global_step, rollouts)

    def _boundary(self) -> None:
        """Nothing moves until the next update: hand the state to the checkpointer."""
        step = self.state.progress.global_step
        is_last = step >= self.config.train.steps
        self.checkpointer.save_if_due(self.state.capture(), step, is_last=is_last)
        self.check_storage()
        if shortage := self.space_shortage():
            self.stop.ask(shortage)
        self.stop.poll_together()

    def _collect(self, prompts: list[Prompt]) -> list[Rollout]:
        progress = self.state.progress
        self.journal.open_step(progress.global_step + 1, progress.policy_version, prompts)
        return collect(
            self.engine,
            self.verifier,
            prompts,
            purpose=Purpose.ROLLOUT,
            run_seed=self.config.train.seed,
            step=self.state.progress.global_step,
            num_samples=self.config.train.group_size,
            batch_size=self.config.engine.batch_size,
            poll=self.stop.poll,
            on_progress=self.console.generating,
            log=self.journal,
            peers=self.peers,
        )

    def _evaluate_if_due(self) -> float | None:
        """Held-out accuracy, if it is its turn; not measured again if an earlier attempt has done so."""
        progress, every = self.state.progress, self.config.eval.every_steps
        if not every or progress.global_step % every:
            return None
        history = next_history(progress.history, self.environment_digest)
        witness = self.witnesses.of(progress.global_step + 1, history)
        return self._evaluate() if witness is None else self._with_best(witness["accuracy"])

    def _evaluate(self) -> float | None:
        """Held-out accuracy of the policy as it is; the same seeds every time."""
        if not self.eval_prompts:
            return None
        rollouts = collect(
            self.engine,
            self.verifier,
            self.eval_prompts,
            purpose=Purpose.EVALUATION,
            run_seed=self.config.train.seed,
            step=0,
            num_samples=self.config.eval.num_samples,
            batch_size=self.config.engine.batch_size,
            poll=self.stop.poll,
            on_progress=self.console.evaluating,
            log=NoLog(),
            peers=self.peers,
        )
        return self._with_best(accuracy(rollouts).pass_at_1)

    def _with_best(self, found: float | None) -> float | None:
        """`found`, after noting it if it is the best so far."""
        progress = self.state.progress
        if found is not None and (progress.best_accuracy is None or found > progress.best_accuracy):
            progress.best_accuracy, progress.best_step = found, progress.global_step
        return found

    def _mean_kl(self, experience: Experience) -> float | None:
        kl = self.state.learner.kl_to_ref(experience)
        if kl is None:
            return None
        return float(masked_mean(kl.double(), experience.loss_mask, num_tokens=experience.num_loss_tokens))

    def _advance(self, rollouts: list[Rollout], stats: UpdateStats, epoch: int) -> None:
        progress = self.state.progress
        progress.global_step += 1
        progress.policy_version += stats.policy is not None
        progress.history = next_history(progress.history, self.environment_digest)
        progress.num_prompts += self.config.train.num_prompts
        progress.num_rollouts += len(rollouts)
        progress.num_tokens += sum(len(r.completion.token_ids) for r in rollouts)
        if self.config.kl.refresh_reference_every_epoch and self.state.loader.state().epoch > epoch:
            self.state.learner.refresh_reference()
            progress.reference_version = progress.policy_version

    def _row(self, rollouts: list[Rollout], experience: Experience, stats: UpdateStats) -> Row:
        progress = self.state.progress
        row = {"step": progress.global_step + 1, "attempt": self.state.lineage.attempt}
        row |= rollout_metrics(rollouts) | experience_metrics(experience)
        row |= (
            {f"policy_{name}": value for name, value in asdict(stats.policy).items()} if stats.policy else {}
        )
        row |= (
            {f"critic_{name}": value for name, value in asdict(stats.critic).items()} if stats.critic else {}
        )
        return row | {
            "policy_version": progress.policy_version,
            "skipped_steps": stats.num_skipped,
            "kl_coef": self.state.kl.coef,
            "epoch": self.state.loader.state().epoch,
        }

    def _check_divergence(self, row: Row) -> None:
        """A step that an earlier attempt has done with the same history must come out with the same bits."""
        try:
            witness = self.witnesses.check(row)
        except DivergenceError as error:
            if self.config.resume.on_divergence == "stop":
                raise
            self.console.warn(error.message)
            return
        reused = f"step {row['step']}: {self.journal.num_reused} rollouts from the journal"
        if witness is not None:
            self.console.note(f"{reused}, came out as in attempt {witness['attempt']}, bit for bit")
        elif self.journal.num_reused:
            self.console.note(reused)

    def _as_recorded(self, row: Row) -> Row:
        """Where a step is only replayed, its row stays the one that was written when it was trained."""
        witness = self.witnesses.of(row["step"], row["history"]) if self.journal.replay_only else None
        return row if witness is None else witness

    def _record(self, row: Row, watch: Stopwatch, step_s: float) -> None:
        stall_s = self.checkpointer.take_stall_s()
        self.state.lineage.train_seconds += step_s + stall_s
        num_rollouts = self.config.train.num_prompts * self.config.train.group_size
        num_tokens = row["length"] * num_rollouts
        new_share = 1 - self.journal.num_reused / num_rollouts
        row["timing"] = {f"{phase}_s": round(seconds, 4) for phase, seconds in watch.seconds.items()} | {
            "step_s": round(step_s, 4),
            "checkpoint_s": round(stall_s, 4),
            "train_s": round(self.state.lineage.train_seconds, 3),
            "num_reused_rollouts": self.journal.num_reused,
            "rollout_tokens_per_s": round(new_share * num_tokens / watch.seconds["generate"], 1),
            "tokens_per_s": round(num_tokens / step_s, 1),
        }
        self.state.metrics.append(self._as_recorded(row))
        self.board.write(row)
        self.console.step(row)
