"""Putting a run back: whether the chosen checkpoint still fits, and every part of it; or step 0 as it was.

Restores everything or raises; what was asked for and cannot be had is never replaced by a fresh start.
"""

from collections.abc import Iterable
from dataclasses import replace

from yaoki.checkpoint.catalog import Refusal, ValidCheckpoint
from yaoki.checkpoint.io.compatible import require_parts
from yaoki.checkpoint.io.reader import read_into
from yaoki.config.compat import config_digest
from yaoki.config.schema import Config
from yaoki.errors import CorruptCheckpointError, DivergenceError, RefusedError
from yaoki.journal.metrics import Row
from yaoki.runs.directory import RunDirectory
from yaoki.runs.lineage import Parent
from yaoki.seeding import Purpose, seed
from yaoki.train import rng
from yaoki.train.state import RunState


class DamagedCheckpoint(Exception):
    """The chosen checkpoint is not whole; never leaves a resume, which goes on with the next one."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def require_same_data(
    checkpoint: ValidCheckpoint, dataset_digest: str, config: Config, parent: Parent | None
) -> None:
    """RefusedError if tasks or config are not those that the checkpoint was made with.

    The checkpoint that a fork has taken over was made with its parent's.
    """
    manifest = checkpoint.manifest
    giver = parent if parent is not None and parent.is_source_of(manifest) else None
    if manifest.dataset_digest != dataset_digest and not (giver and giver.has_other_data):
        raise RefusedError(
            "the training data has changed (tasks, held-out tasks, template, or what model/ in the run "
            "directory holds): "
            f"{checkpoint.path.name} was made with data of digest {manifest.dataset_digest}, "
            f"now it is {dataset_digest}",
            hint="put data.files, eval.files and the template back as they were; to train on other data, "
            "start a new run with --run and policy.init_from",
        )
    if manifest.config_digest != config_digest(config) and giver is None:
        raise RefusedError(
            f"{checkpoint.path.name} was made with another config (digest {manifest.config_digest}, "
            f"now {config_digest(config)})",
            hint="config.json in the run directory was changed by hand: put it back",
        )


def restore(checkpoint: ValidCheckpoint, state: RunState, parent: Parent | None, run_seed: int) -> None:
    """Put every part of the inventory back; missing and left-over parts are errors.

    The checkpoint is verified while it is read, straight into the live tensors. DamagedCheckpoint if it is
    not whole: then the state holds garbage, and another one has to be restored into a new state.

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
    if state.world.rank >= manifest.world_size:  # it has no generators to go on with
        rng.seed_generators(seed(run_seed, Purpose.FRAMEWORK, state.world.rank, manifest.step))


def require_same_start(directory: RunDirectory, state: RunState, environment_digest: str) -> None:
    """Record what the run starts from, or make sure that this attempt starts from the same bits.

    DivergenceError if step 0 comes out of the same config and environment with other bits.
    """
    found = state.fingerprint()
    then = directory.recorded_start()
    if then is None:
        directory.record_start({"environment": environment_digest, "fingerprint": found})
        return
    different = [name for name in found if then["fingerprint"].get(name) != found[name]]
    if different and then["environment"] == environment_digest:
        raise DivergenceError(
            f"the state at step 0 is not what this run started from: first in {different[0]}",
            hint="policy.init_from or critic.init_from holds other weights now: put them back, or start a "
            "new run with --run",
        )


class RecordedSteps:
    """Rows that a resume cut off; of the same step and history the newest counts."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row["step"], row["history"]): row for row in rows}

    def of(self, step: int, history: str) -> Row | None:
        """The row of a step with this history after it, if an attempt has come that far."""
        return self._rows.get((step, history))

    def check(self, row: Row) -> Row | None:
        """The witness that `row` agrees with, if there is one.

        Raises:
            DivergenceError: the bits differ; names the first component that does.
        """
        witness = self.of(row["step"], row["history"])
        if witness is None:
            return None
        then, now = witness["fingerprint"], row["fingerprint"]
        different = [name for name in now if then.get(name) != now[name]]
        if not different:
            return witness
        raise DivergenceError(
            f"step {row['step']} differs from what attempt {witness['attempt']} did: "
            f"first in {different[0]} ({then.get(different[0])} then, {now[different[0]]} now)",
            hint='look for what changed since; resume.on_divergence="warn" goes on regardless',
        )
