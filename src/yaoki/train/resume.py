"""Validates the chosen checkpoint against config and data, then restores all state; or starts at step 0.

Restores everything or raises: a fresh start never replaces a checkpoint that was asked for.
"""

from dataclasses import replace

from yaoki.checkpoint.catalog import Refusal, ValidCheckpoint
from yaoki.checkpoint.io.compatible import require_parts
from yaoki.checkpoint.io.reader import read_into
from yaoki.config.compat import config_digest
from yaoki.config.schema import Config
from yaoki.errors import CorruptCheckpointError, DivergenceError, RefusedError
from yaoki.runs.directory import RunDirectory
from yaoki.runs.lineage import Parent
from yaoki.runs.records import StartRecord
from yaoki.seeding import Purpose, seed
from yaoki.train import rng
from yaoki.train.state import RunState


class DamagedCheckpoint(Exception):
    """The chosen checkpoint is damaged; the resume catches this and takes the next one."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def require_same_data(
    checkpoint: ValidCheckpoint, dataset_digest: str, config: Config, parent: Parent | None
) -> None:
    """RefusedError if tasks or config are not those that the checkpoint was made with.

    A fork's first checkpoint was made with its parent's tasks and config.
    """
    manifest = checkpoint.manifest
    source = parent if parent is not None and parent.is_source_of(manifest) else None
    if manifest.dataset_digest != dataset_digest and not (source and source.has_other_data):
        raise RefusedError(
            "the training data has changed (tasks, held-out tasks, template, or what model/ in the run "
            "directory holds): "
            f"{checkpoint.path.name} was made with data of digest {manifest.dataset_digest}, "
            f"now it is {dataset_digest}",
            hint="put data.files, eval.files and the template back as they were; to train on other data, "
            "start a new run with --run and policy.init_from",
        )
    if manifest.config_digest != config_digest(config) and source is None:
        raise RefusedError(
            f"{checkpoint.path.name} was made with another config (digest {manifest.config_digest}, "
            f"now {config_digest(config)})",
            hint="config.json in the run directory was changed by hand: put it back",
        )


def restore(checkpoint: ValidCheckpoint, state: RunState, parent: Parent | None, run_seed: int) -> None:
    """Restore every part of the inventory; missing and left-over parts are errors.

    The checkpoint is verified while it is read, straight into the live tensors. DamagedCheckpoint if it is
    damaged: the state holds garbage then, and another checkpoint must be restored into a new state.

    A fork that has other tasks than its parent begins with the next epoch.
    """
    require_parts(checkpoint.path, checkpoint.manifest, state.scopes())
    manifest = checkpoint.manifest
    live = state.live_tensors({tensor.part for tensor in manifest.tensors})
    try:
        loaded = read_into(checkpoint.path, manifest, live, ranks=state.world.loop)
    except CorruptCheckpointError as error:
        raise DamagedCheckpoint(Refusal(checkpoint.path, error.below(checkpoint.path))) from error
    parts = dict(loaded.parts)
    if parent is not None and parent.is_source_of(checkpoint.manifest) and parent.begins_epoch:
        match parts["data"].json:
            case {"epoch": int(epoch)}:
                parts["data"] = replace(parts["data"], json={"epoch": epoch + 1, "cursor": 0})
    state.restore(parts)
    if state.world.rank >= manifest.world_size:  # no rank of the checkpoint had its generators
        rng.seed_generators(seed(run_seed, Purpose.FRAMEWORK, state.world.rank, manifest.step))


def start_fresh(state: RunState, run_seed: int) -> None:
    """The state as step 0 has it, besides the weights."""
    if state.metrics is not None:
        state.metrics.cut_back(None)
    ranks = [state.world.rank] if state.world.rank else []  # each rank has generators of its own
    rng.seed_generators(seed(run_seed, Purpose.FRAMEWORK, *ranks))


def require_same_start(directory: RunDirectory, state: RunState, environment_digest: str) -> None:
    """Record the state at step 0, or make sure that this attempt starts from the same bits. All ranks call
    this.

    DivergenceError if step 0 has other bits with the same config and environment.
    """
    found = state.fingerprint()
    if not state.world.is_first:
        return
    then = directory.recorded_start()
    if then is None:
        directory.record_start(StartRecord(environment=environment_digest, fingerprint=found))
        return
    different = [name for name in found if then.fingerprint.get(name) != found[name]]
    if different and then.environment == environment_digest:
        raise DivergenceError(
            f"the state at step 0 is not what this run started from: first in {different[0]}",
            hint="policy.init_from or critic.init_from holds other weights now: put them back, or start a "
            "new run with --run",
        )
