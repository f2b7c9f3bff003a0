"""Putting a run back: whether the chosen checkpoint still fits, and every part of it.

Restores everything or raises; what was asked for and cannot be had is never replaced by a fresh start.
"""

from yaoki.checkpoint.catalog import ValidCheckpoint
from yaoki.checkpoint.reader import load
from yaoki.config.compat import config_digest
from yaoki.config.schema import Config
from yaoki.errors import RefusedError
from yaoki.run.state import RunState


def require_same_data(checkpoint: ValidCheckpoint, dataset_digest: str, config: Config) -> None:
    """RefusedError if tasks or config are not those that the checkpoint was made with."""
    manifest = checkpoint.manifest
    if manifest.dataset_digest != dataset_digest:
        raise RefusedError(
            "the training data has changed (tasks, held-out tasks, template, or what model/ in the run "
            "directory holds): "
            f"{checkpoint.path.name} was made with data of digest {manifest.dataset_digest}, "
            f"now it is {dataset_digest}",
            hint="put data.files, eval.files and the template back as they were; to train on other data, "
            "start a new run with --run and policy.init_from",
        )
    if manifest.config_digest != config_digest(config):
        raise RefusedError(
            f"{checkpoint.path.name} was made with another config (digest {manifest.config_digest}, "
            f"now {config_digest(config)})",
            hint="config.json in the run directory was changed by hand: put it back",
        )


def restore(checkpoint: ValidCheckpoint, state: RunState) -> None:
    """Put every part of the inventory back; missing and left-over parts are errors."""
    loaded = load(checkpoint.path, state.scopes(), verified=checkpoint.manifest)
    state.restore(loaded.parts)
