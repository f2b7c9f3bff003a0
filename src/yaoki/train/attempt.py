"""One attempt of a run: build its parts, restore them, train, sum up. The composition root."""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from yaoki.checkpoint.catalog import Catalog, Choice, ValidCheckpoint
from yaoki.checkpoint.io.checkpointer import Checkpointer
from yaoki.checkpoint.io.save import SaveInfo
from yaoki.checkpoint.io.store import CheckpointStore, SavedCheckpoint
from yaoki.config.compat import config_digest
from yaoki.config.schema import Config
from yaoki.data.prompts import PromptLoader
from yaoki.journal.journal import NullJournal, RolloutJournal
from yaoki.journal.metrics import MetricsLog, held_out_accuracies, read_rows
from yaoki.journal.segments import JournalIdentity
from yaoki.learner.learner import Learner
from yaoki.ranks.world import World, peers_expected
from yaoki.rewards.pool import VerifierPool
from yaoki.runs.directory import RunDirectory
from yaoki.runs.environment import Environment, environment_digest
from yaoki.runs.grade import grade_of
from yaoki.runs.records import RunSummary
from yaoki.train.console import Console
from yaoki.train.dataset import Tasks
from yaoki.train.device import choose_device, environment, require_whole_engines
from yaoki.train.engine import build_collector, build_engine
from yaoki.train.networks import build_kl, build_learner, empty_models, start_models
from yaoki.train.recorder import RecordedSteps, StepRecorder
from yaoki.train.resume import require_same_data, require_same_start, restore, start_fresh
from yaoki.train.state import Lineage, Progress, RunState
from yaoki.train.step_metrics import Stopwatch
from yaoki.train.stop import StopSignal, space_shortage
from yaoki.train.trackers import TensorBoard, Tracker
from yaoki.train.trainer import Trainer
from yaoki.train.weight_sync import WeightSync, probe_ids, tolerance


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, when it ended well."""

    directory: RunDirectory
    summary: RunSummary | None
    """None on ranks other than 0."""
    already_finished: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of an attempt: what its parts are built from, besides the checkpoint."""

    directory: RunDirectory
    config: Config
    console: Console
    world: World
    stop: StopSignal
    number: int
    """Of the attempt, from 1."""
    replay_only: bool
    boundary_checks: list[Callable[[], None]]
    """Called between steps; each raises if the run cannot go on."""
    timer: Stopwatch
    """Phases of the start."""


def attempt(context: Context, choice: Choice) -> Outcome:
    """Build, restore, train, sum up."""
    directory, config, world = context.directory, context.config, context.world
    require_whole_engines(config, world)
    device = choose_device(config, world)
    now = environment(config, device, world)
    verdict = grade_of(choice, now, config, directory.parent)
    context.console.headline(f"run {directory.path}, attempt {context.number}: {verdict.describe()}")
    with ExitStack() as stack:
        trainer = build_trainer(context, choice, now, device, stack)
        if world.is_first:
            directory.store_config(config)  # not before it is certain that the run can continue with it
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in context.timer.seconds.items())
        context.console.note(f"ready after {context.timer.total_s:.1f} s: {phases}")
        for tracker in trainer.recorder.trackers:
            tracker.resume_from(verdict.step + 1)
        with peers_expected():
            final_accuracy = trainer.train(measure_at_end=not context.replay_only)
        if not world.is_first:
            return Outcome(directory, None)
        summary = _summary(context, trainer, final_accuracy)
        directory.write_summary(summary)
        return Outcome(directory, summary)


def build_trainer(
    context: Context, choice: Choice, now: Environment, device: torch.device, stack: ExitStack
) -> Trainer:
    """All parts, in the state that the attempt starts from; the generators are restored last."""
    directory, config, console, world = context.directory, context.config, context.console, context.world
    data = config.data
    with context.timer("build"):
        verifier = stack.enter_context(  # first, so that a wrong name is not found after an hour
            VerifierPool(data.verifier, data.verifier_workers, data.verifier_time_limit_s)
        )
        if choice.checkpoint is None:
            models = start_models(config, directory, device, console, context.stop.poll_signals, world)
        else:
            models = empty_models(config, directory, device, world)
        tasks = Tasks(config, models.tokenizer, console)
        source = tasks.training_source()
        eval_prompts = tasks.eval_prompts() if config.eval.every_steps else []
        dataset_digest = tasks.digest(source, eval_prompts, directory.model)
        if choice.checkpoint is not None:
            require_same_data(choice.checkpoint, dataset_digest, config, directory.parent)
        state = _state(context, build_learner(config, models, world), tasks.loader(source))
        trackers = _trackers(context, state.metrics)
        for tracker in trackers:
            stack.callback(tracker.close)
        engine = build_engine(config, str(directory.model / "policy"), models.tokenizer, device)
        digest = environment_digest(now, context.number)
        _freeze_gc()
    with context.timer("restore"):  # after all that is built, for it restores the generators
        if choice.checkpoint is None:
            start_fresh(state, config.train.seed)
            require_same_start(directory, state, digest)
        else:
            restore(choice.checkpoint, state, directory.parent, config.train.seed)
            console.note(f"restored: {'; '.join(part.holds for part in state.inventory())}")
        world.loop.wait()  # rank 0 has cut back files that all ranks read below
    with context.timer("engine"):
        probe, version = probe_ids(models.tokenizer), state.progress.policy_version
        weight_sync = WeightSync(engine, state.learner, probe, tolerance(config.train.precision))
        expected = weight_sync.push(version)
        state.learner.offload()
        weight_sync.verify(version, expected)
    journal = _journal(context, stack)
    checkpointer = _checkpointer(context, choice.checkpoint, now, dataset_digest, state.metrics, journal)
    return Trainer(
        config=config,
        state=state,
        engine=engine,
        collector=build_collector(config, engine, verifier, journal, world, context.stop.poll),
        journal=journal,
        eval_prompts=eval_prompts,
        checkpointer=stack.enter_context(checkpointer),
        weight_sync=weight_sync,
        recorder=_recorder(context, trackers),
        console=console,
        stop=context.stop,
        boundary_checks=[*context.boundary_checks, partial(_check_space, context)],
        environment_digest=digest,
    )


def _state(context: Context, learner: Learner, loader: PromptLoader) -> RunState:
    directory, parent = context.directory, context.directory.parent
    metrics = None
    if context.world.is_first:
        metrics = MetricsLog(directory.metrics_path, directory.superseded_path(context.number))
    return RunState(
        learner=learner,
        loader=loader,
        kl=build_kl(context.config),
        progress=Progress(),
        lineage=Lineage(directory.run_id, context.number, None if parent is None else parent.run_id),
        metrics=metrics,
        world=context.world,
    )


def _trackers(context: Context, metrics: MetricsLog | None) -> list[Tracker]:
    """On rank 0; none on other ranks."""
    if metrics is None:
        return []
    return [metrics, TensorBoard(context.directory.tensorboard, context.console.warn), context.console]


def _recorder(context: Context, trackers: list[Tracker]) -> StepRecorder:
    """Holds steps to the rows that this attempt and earlier ones cut off: a retry does not make a divergence
    right."""
    files = [context.directory.superseded_path(number) for number in range(1, context.number + 1)]
    recorded = RecordedSteps(row for file in files for row in read_rows(file))
    on_divergence = context.config.resume.on_divergence
    return StepRecorder(recorded, trackers, context.console, on_divergence, context.replay_only)


def _journal(context: Context, stack: ExitStack) -> RolloutJournal | NullJournal:
    config, directory = context.config, context.directory
    if not config.journal.enabled:
        return NullJournal()
    identity = JournalIdentity(
        directory.run_id,
        config_digest(config),
        context.number,
        engine=config.engine.type,
        rank=context.world.rank,
    )
    journal = RolloutJournal(
        directory.rollouts,
        identity,
        flush_seconds=config.journal.flush_seconds,
        flush_rollouts=config.journal.flush_rollouts,
        num_ranks=context.world.size,
        replay_only=context.replay_only,
        warn=context.console.warn,
        on_append=context.stop.made_progress,
    )
    return stack.enter_context(journal)


def _checkpointer(
    context: Context,
    restored: ValidCheckpoint | None,
    now: Environment,
    dataset_digest: str,
    metrics: MetricsLog | None,
    journal: RolloutJournal | NullJournal,
) -> Checkpointer:
    directory, config, world = context.directory, context.config, context.world
    info = SaveInfo(
        run_id=directory.run_id,
        attempt=context.number,
        parent=None if restored is None else restored.path.name,
        config_digest=config_digest(config),
        dataset_digest=dataset_digest,
        environment=now,
    )

    def on_saved(saved: SavedCheckpoint) -> None:
        if world.is_first:
            directory.mark_saved()
        context.stop.saved(saved.duration_s)
        size_mb = saved.size_bytes / 1e6
        context.console.note(f"saved {saved.path.name}: {size_mb:.1f} MB in {saved.duration_s:.2f} s")

    def on_pruned() -> None:
        steps = [candidate.step for candidate in Catalog(directory.checkpoints).candidates()]
        if steps and world.is_first:
            journal.prune(min(steps), config.journal.keep)

    return Checkpointer(
        store=CheckpointStore(directory.checkpoints, restored, world.writer),
        info=info,
        config=config.checkpoint,
        accuracies=lambda: held_out_accuracies(read_rows(directory.metrics_path)),
        sync_metrics=(lambda: None) if metrics is None else metrics.sync,
        saved_step=-1 if restored is None else restored.manifest.step,
        on_saved=on_saved,
        on_pruned=on_pruned,
    )


def _check_space(context: Context) -> None:
    """Ask for a stop when the disk is nearly full."""
    if shortage := space_shortage(context.directory.path, context.config.run.min_free_gb):
        context.stop.ask(shortage)


def _summary(context: Context, trainer: Trainer, final_accuracy: float | None) -> RunSummary:
    rows = read_rows(context.directory.metrics_path)
    measured = [row.accuracy for row in rows if row.accuracy is not None]
    progress = trainer.state.progress
    return RunSummary(
        steps=progress.global_step,
        attempts=context.number,
        accuracy_before=measured[0] if measured else None,
        accuracy_after=final_accuracy,
        best_accuracy=progress.best_accuracy,
        best_step=progress.best_step,
        num_rollouts=progress.num_rollouts,
        num_tokens=progress.num_tokens,
        train_seconds=round(trainer.state.lineage.train_seconds, 1),
    )


def _freeze_gc() -> None:
    """Exempt everything imported and built so far, which lives to the end, from garbage collection.

    A full collection would take 0.1 s, during which every thread stands still, in the middle of generating.
    """
    gc.collect()
    gc.freeze()
