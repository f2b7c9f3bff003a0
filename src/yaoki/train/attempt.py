"""One attempt of a run: build the live parts, restore them, train, sum up.

Knows nothing of locks, nor of which checkpoint is the right one.
"""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from yaoki.checkpoint.catalog import Catalog, Choice, ValidCheckpoint
from yaoki.checkpoint.io.checkpointer import Checkpointer
from yaoki.checkpoint.io.save import SaveInfo
from yaoki.checkpoint.io.store import CheckpointStore, SavedCheckpoint
from yaoki.config.compat import config_digest
from yaoki.config.schema import Config
from yaoki.journal.journal import JournalIdentity, RolloutJournal
from yaoki.journal.metrics import MetricsLog, held_out_accuracies, read_metrics
from yaoki.ranks.world import World, peers_expected
from yaoki.rewards.pool import VerifierPool
from yaoki.runs.directory import RunDirectory
from yaoki.runs.environment import Environment, environment_digest
from yaoki.runs.grade import ResumeVerdict, grade_of
from yaoki.seeding import Purpose, seed
from yaoki.train import rng
from yaoki.train.console import Console
from yaoki.train.dataset import Tasks
from yaoki.train.exchange import RolloutExchange, StepJournal
from yaoki.train.networks import (
    Models,
    build_engine,
    build_kl,
    build_learner,
    choose_device,
    empty_models,
    environment,
    require_whole_engines,
    start_models,
)
from yaoki.train.resume import RecordedSteps, require_same_data, require_same_start, restore
from yaoki.train.state import Lineage, Progress, RunState
from yaoki.train.step_metrics import Startup
from yaoki.train.stop import StopSignal, space_shortage
from yaoki.train.trackers import Board, FollowedBoard, FollowedMetrics
from yaoki.train.trainer import Trainer
from yaoki.train.weight_sync import WeightSync, probe_ids, tolerance


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, when it ended well."""

    directory: RunDirectory
    step: int
    summary: dict[str, Any]
    already_finished: bool


@dataclass(frozen=True)
class Attempt:
    """What the building of one attempt needs at every turn."""

    directory: RunDirectory
    config: Config
    console: Console
    number: int
    stop: StopSignal
    startup: Startup
    replay_only: bool
    world: World
    check_storage: Callable[[], None]
    """Raises what has gone wrong with the copy at run.storage."""
    stack: ExitStack

    def run(self, choice: Choice) -> Outcome:
        """Build, restore, train, sum up."""
        require_whole_engines(self.config, self.world)
        device = choose_device(self.config, self.world)
        now = environment(self.config, device, self.world)
        verdict = grade_of(choice, now, self.config, self.directory.parent)
        self.console.headline(f"run {self.directory.path}, attempt {self.number}: {verdict.describe()}")
        trainer = self._build(choice, verdict, now, device)
        self.directory.store_config(self.config)  # only now is it known that the run can go on with it
        self.console.start(trainer.state.progress.global_step, self.config.train.steps)
        with peers_expected():
            final_accuracy = trainer.run(measure_at_end=not self.replay_only)
        summary = self._summary(trainer, final_accuracy)
        self.directory.write_summary(summary)
        return Outcome(self.directory, trainer.state.progress.global_step, summary, already_finished=False)

    def _build(
        self, choice: Choice, verdict: ResumeVerdict, now: Environment, device: torch.device
    ) -> Trainer:
        """All live parts, in the state that the attempt starts from; the generators are set last."""
        config, directory, parent = self.config, self.directory, self.directory.parent
        verifier = self.stack.enter_context(  # first: a wrong name should not be found after an hour
            VerifierPool(
                config.data.verifier, config.data.verifier_workers, config.data.verifier_time_limit_s
            )
        )
        models = self._models(choice, device)
        tasks = Tasks(config, models.tokenizer, self.console)
        source = tasks.training_source()
        eval_prompts = tasks.eval_prompts() if config.eval.every_steps else []
        digest = tasks.digest(source, eval_prompts, directory.model)
        if choice.checkpoint is not None:
            require_same_data(choice.checkpoint, digest, config, parent)
        state = RunState(
            learner=build_learner(config, models, self.world),
            loader=tasks.loader(source),
            kl=build_kl(config),
            progress=Progress(),
            lineage=Lineage(directory.run_id, self.number, None if parent is None else parent.run_id),
            metrics=self._metrics(),
            world=self.world,
        )
        self.stack.callback(state.metrics.close)
        board = self._board(verdict.step + 1)
        self.stack.callback(board.close)
        engine = build_engine(config, models, device)
        facts = environment_digest(now, self.number)
        _freeze_gc()
        self.startup.ended("build")
        self._restore(choice, state, facts)  # after all that is built, for it sets the generators
        self.world.loop.wait()  # what the first rank has cut off is read below
        self.startup.ended("load")
        probe = probe_ids(models.tokenizer)
        weight_sync = WeightSync(engine, state.learner, probe, tolerance(config.train.precision))
        weight_sync.push(state.progress.policy_version)
        self.startup.ended("engine")
        journal = self._open_journal()
        return Trainer(
            config=config,
            state=state,
            engine=engine,
            verifier=verifier,
            eval_prompts=eval_prompts,
            checkpointer=self._checkpointer(choice.checkpoint, now, digest, state.metrics, journal),
            board=board,
            console=self.console,
            stop=self.stop,
            journal=self._step_journal(journal),
            witnesses=self._witnesses(),
            peers=RolloutExchange(self.world, config.engine.tensor_parallel),
            weight_sync=weight_sync,
            space_shortage=self._space_shortage,
            check_storage=self.check_storage,
            environment_digest=facts,
        )

    def _board(self, first_step: int) -> Board:
        if not self.world.is_first:
            return FollowedBoard()
        return Board(self.directory.tensorboard, first_step, self.console.warn)

    def _models(self, choice: Choice, device: torch.device) -> Models:
        if choice.checkpoint is not None:
            return empty_models(self.config, self.directory, device, self.world)
        poll = self.stop.poll_signals
        return start_models(self.config, self.directory, device, self.console, poll, self.world)

    def _restore(self, choice: Choice, state: RunState, facts: str) -> None:
        """Every part as the checkpoint has it, or as step 0 has it."""
        if choice.checkpoint is not None:
            restore(choice.checkpoint, state, self.directory.parent, self.config.train.seed)
            self.console.note(f"restored: {'; '.join(part.holds for part in state.inventory())}")
            return
        state.metrics.cut_back(None)
        ranks = [self.world.rank] if self.world.rank else []  # each rank has generators of its own
        rng.seed_generators(seed(self.config.train.seed, Purpose.FRAMEWORK, *ranks))
        require_same_start(self.directory, state, facts)

    def _startup_ended(self, phase: str) -> None:
        self.startup.ended(phase)
        if self.startup.is_over:
            if self.config.journal.enabled:
                self.stop.made_progress()
            self.directory.record_startup(self.number, self.startup.seconds)

    def _open_journal(self) -> RolloutJournal | None:
        config = self.config.journal
        if not config.enabled:
            return None
        identity = JournalIdentity(
            self.directory.run_id,
            config_digest(self.config),
            self.number,
            engine=self.config.engine.type,
            rank=self.world.rank,
        )
        journal = RolloutJournal(
            self.directory.rollouts,
            identity,
            flush_seconds=config.flush_seconds,
            flush_rollouts=config.flush_rollouts,
            num_ranks=self.world.size,
        )
        return self.stack.enter_context(journal)

    def _step_journal(self, journal: RolloutJournal | None) -> StepJournal:
        wait = self.world.loop.wait
        return StepJournal(journal, self.console, self._startup_ended, wait, replay_only=self.replay_only)

    def _witnesses(self) -> RecordedSteps:
        """Rows that this attempt and earlier ones cut off: trying again does not make a divergence right."""
        files = [self.directory.superseded_path(attempt) for attempt in range(1, self.number + 1)]
        return RecordedSteps(row for file in files for row in read_metrics(file))

    def _space_shortage(self) -> str | None:
        return space_shortage(self.directory.path, self.config.run.min_free_gb)

    def _metrics(self) -> MetricsLog:
        if not self.world.is_first:
            return FollowedMetrics()
        return MetricsLog(self.directory.metrics_path, self.directory.superseded_path(self.number))

    def _checkpointer(
        self,
        restored: ValidCheckpoint | None,
        now: Environment,
        dataset_digest: str,
        metrics: MetricsLog,
        journal: RolloutJournal | None,
    ) -> Checkpointer:
        info = SaveInfo(
            run_id=self.directory.run_id,
            attempt=self.number,
            parent=None if restored is None else restored.path.name,
            config_digest=config_digest(self.config),
            dataset_digest=dataset_digest,
            environment=now,
        )
        checkpointer = Checkpointer(
            store=CheckpointStore(self.directory.checkpoints, restored, self.world.writer),
            info=info,
            config=self.config.checkpoint,
            accuracies=self._accuracies,
            sync_metrics=metrics.sync,
            saved_step=-1 if restored is None else restored.manifest.step,
            on_saved=self._on_saved,
            on_pruned=partial(self._prune_journal, journal),
        )
        return self.stack.enter_context(checkpointer)

    def _accuracies(self) -> dict[int, float]:
        return held_out_accuracies(read_metrics(self.directory.metrics_path))

    def _prune_journal(self, journal: RolloutJournal | None) -> None:
        steps = [c.step for c in Catalog(self.directory.checkpoints).candidates()]
        if journal is not None and steps and self.world.is_first:
            journal.prune(min(steps), self.config.journal.keep)

    def _on_saved(self, saved: SavedCheckpoint) -> None:
        self.directory.mark_saved()
        self.stop.saved(saved.duration_s)
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


def _freeze_gc() -> None:
    """What was imported and built stays to the end: let no garbage collection walk over it again.

    A full one takes 0.1 s then, in which every thread stands still, in the middle of generating.
    """
    gc.collect()
    gc.freeze()
