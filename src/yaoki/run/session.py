"""One attempt of a run: lock, choose, compare, build, restore, train, and say how it went."""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from yaoki.checkpoint.catalog import Choice
from yaoki.checkpoint.store import CheckpointStore, SavedCheckpoint, SaveInfo
from yaoki.config.compat import config_digest, require_resumable
from yaoki.config.schema import Config
from yaoki.data.verifier_pool import VerifierPool
from yaoki.errors import StopRequested
from yaoki.journal.metrics import LogPosition, MetricsLog, Row, read_metrics
from yaoki.models.determinism import configure
from yaoki.run import rng
from yaoki.run.board import Board
from yaoki.run.build import (
    build_engine,
    build_kl,
    build_learner,
    choose_device,
    empty_models,
    environment,
    start_models,
)
from yaoki.run.checkpointing import Checkpointer
from yaoki.run.console import Console
from yaoki.run.directory import RunDirectory
from yaoki.run.environment import Environment, environment_digest
from yaoki.run.grade import ResumeVerdict, judge
from yaoki.run.recover import require_same_data, restore
from yaoki.run.state import Lineage, Progress, RunState
from yaoki.run.stop import StopSignal
from yaoki.run.tasks import Tasks
from yaoki.run.trainer import Trainer
from yaoki.seeding import Purpose, seed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, when it ended well."""

    directory: RunDirectory
    step: int
    summary: dict[str, Any]
    already_finished: bool


def train(directory: RunDirectory, config: Config, console: Console) -> Outcome:
    """Start the run of `directory`, or resume what it holds, and train until train.steps.

    Raises StopRequested (saved, to be resumed) and any YaokiError; never starts afresh where a
    checkpoint was meant to be.
    """
    with directory.lock():
        _open(directory, config, console)
        choice = directory.choose_checkpoint()
        for refusal in choice.refusals:
            console.warn(f"not used: {refusal}")
        summary = directory.summary()
        done = choice.checkpoint.manifest.step if choice.checkpoint else 0
        if summary is not None and summary["steps"] == done >= config.train.steps:
            return Outcome(directory, done, summary, already_finished=True)
        configure(deterministic=config.run.deterministic, num_threads=config.run.num_threads)
        return _attempt(directory, config, console, choice)


def _open(directory: RunDirectory, config: Config, console: Console) -> None:
    """Make a new run, or make sure that this config may go on with the one that is there."""
    if not directory.exists:
        directory.create(config)
        return
    for change in require_resumable(directory.stored_config(), config):
        console.note(f"changed since the last attempt: {change}")


def _attempt(directory: RunDirectory, config: Config, console: Console, choice: Choice) -> Outcome:
    """Run one attempt between its two lines in attempts.jsonl."""
    number = len(directory.attempts()) + 1
    directory.log_attempt({"attempt": number, "started_unix_s": time.time(), "pid": os.getpid()})
    ending = {"outcome": "failed", "reason": "ended from outside"}
    try:
        with StopSignal(config.run.max_seconds) as stop, ExitStack() as stack:
            outcome = _Attempt(directory, config, console, number, stop, stack).run(choice)
        ending = {"outcome": "finished"}
        return outcome
    except StopRequested as reason:
        ending = {"outcome": "stopped", "reason": str(reason)}
        raise
    except Exception as error:
        ending = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
        raise
    finally:
        directory.log_attempt({**ending, "ended_unix_s": time.time()})


@dataclass(frozen=True)
class _Attempt:
    """What the building of one attempt needs at every turn."""

    directory: RunDirectory
    config: Config
    console: Console
    number: int
    stop: StopSignal
    stack: ExitStack

    def run(self, choice: Choice) -> Outcome:
        """Build, restore, train, sum up."""
        device = choose_device(self.config)
        now = environment(self.config, device)
        verdict = judge(choice, now, self.config)
        self.console.headline(f"run {self.directory.path}, attempt {self.number}: {verdict.describe()}")
        trainer = self._build(choice, verdict, now, device)
        self.directory.store_config(self.config)  # only now is it known that the run can go on with it
        self.console.start(trainer.state.progress.global_step, self.config.train.steps)
        final_accuracy = trainer.run()
        summary = self._summary(trainer, final_accuracy)
        self.directory.write_summary(summary)
        return Outcome(self.directory, trainer.state.progress.global_step, summary, already_finished=False)

    def _build(
        self, choice: Choice, verdict: ResumeVerdict, now: Environment, device: torch.device
    ) -> Trainer:
        """All live parts, in the state that the attempt starts from; the generators are set last."""
        config, directory = self.config, self.directory
        verifier = self.stack.enter_context(  # first: a wrong name should not be found after an hour
            VerifierPool(
                config.data.verifier, config.data.verifier_workers, config.data.verifier_time_limit_s
            )
        )
        if choice.checkpoint is None:
            models = start_models(config, directory, device, self.console, self.stop.poll_signals)
        else:
            models = empty_models(config, directory, device)
        tasks = Tasks(config, models.tokenizer, self.console)
        source = tasks.training_source()
        eval_prompts = tasks.eval_prompts() if config.eval.every_steps else []
        digest = tasks.digest(source, eval_prompts, directory.model)
        if choice.checkpoint is not None:
            require_same_data(choice.checkpoint, digest, config)
        state = RunState(
            learner=build_learner(config, models),
            loader=tasks.loader(source),
            kl=build_kl(config),
            progress=Progress(),
            lineage=Lineage(directory.run_id, self.number),
            metrics=MetricsLog(directory.metrics_path, directory.superseded_path(self.number)),
        )
        self.stack.callback(state.metrics.close)
        board = Board(directory.tensorboard, verdict.step + 1)
        self.stack.callback(board.close)
        trainer = Trainer(
            config=config,
            state=state,
            engine=build_engine(config, models),
            verifier=verifier,
            eval_prompts=eval_prompts,
            checkpointer=self._checkpointer(choice, verdict, now, digest, state.metrics),
            board=board,
            console=self.console,
            stop=self.stop,
            environment_digest=environment_digest(now, self.number),
        )
        if choice.checkpoint is not None:
            restore(choice.checkpoint, state)
            self.console.note(f"restored: {'; '.join(part.holds for part in state.inventory())}")
        else:
            state.metrics.cut_back(LogPosition(0, 0))
            rng.seed_generators(seed(config.train.seed, Purpose.FRAMEWORK))
        state.metrics.superseded = self._rows_cut_off_before() | state.metrics.superseded
        return trainer

    def _rows_cut_off_before(self) -> dict[int, Row]:
        """Rows by step that earlier attempts cut off: trying again does not make a divergence right."""
        files = [self.directory.superseded_path(attempt) for attempt in range(1, self.number)]
        return {row["step"]: row for file in files for row in read_metrics(file)}

    def _checkpointer(
        self,
        choice: Choice,
        verdict: ResumeVerdict,
        now: Environment,
        dataset_digest: str,
        metrics: MetricsLog,
    ) -> Checkpointer:
        info = SaveInfo(
            run_id=self.directory.run_id,
            attempt=self.number,
            parent=verdict.checkpoint,
            config_digest=config_digest(self.config),
            dataset_digest=dataset_digest,
            environment=now,
        )
        return Checkpointer(
            store=CheckpointStore(self.directory.checkpoints),
            info=info,
            config=self.config.checkpoint,
            accuracies=self._accuracies,
            sync_metrics=metrics.sync,
            saved_step=-1 if choice.checkpoint is None else verdict.step,
            on_saved=self._on_saved,
        )

    def _accuracies(self) -> dict[int, float]:
        """Held-out accuracy by the step of the checkpoint that holds the evaluated weights."""
        rows = read_metrics(self.directory.metrics_path)
        return {row["step"] - 1: row["accuracy"] for row in rows if row["accuracy"] is not None}

    def _on_saved(self, saved: SavedCheckpoint) -> None:
        self.directory.mark_saved()
        size_mb = saved.size_bytes / 1e6
        self.console.note(f"saved {saved.path.name}: {size_mb:.1f} MB in {saved.duration_s:.2f} s")

    def _summary(self, trainer: Trainer, final_accuracy: float | None) -> dict[str, Any]:
        rows = read_metrics(self.directory.metrics_path)
        measured = [row["accuracy"] for row in rows if row["accuracy"] is not None]
        progress = trainer.state.progress
        return {
            "steps": progress.global_step,
            "attempts": self.number,
            "accuracy_before": measured[0] if measured else None,
            "accuracy_after": final_accuracy,
            "best_accuracy": progress.best_accuracy,
            "best_step": progress.best_step,
            "num_rollouts": progress.num_rollouts,
            "num_tokens": progress.num_tokens,
            "train_seconds": round(trainer.state.lineage.train_seconds, 1),
        }
