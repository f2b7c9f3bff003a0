"""`yaoki export`: the policy and critic of a checkpoint as Hugging Face folders."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from yaoki.checkpoint.io.reader import load
from yaoki.commands.checkpoints import find_checkpoint
from yaoki.errors import RefusedError
from yaoki.models.critic import build_critic
from yaoki.models.huggingface import export_model, load_tokenizer
from yaoki.models.policy import build_causal_lm
from yaoki.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Export:
    """The exported folders and the step of their weights."""

    step: int
    folders: tuple[Path, ...]


def export_run(directory: RunDirectory, at: int | None, target: Path) -> Export:
    """Write policy (and critic) of a checkpoint, the newest for `at` None, as folders under `target`.

    `target` appears complete, by a rename. Raises RefusedError if it exists and is not an empty directory.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RefusedError(f"{target} already exists", hint="name a new folder with --to")
    checkpoint = find_checkpoint(directory, at)
    trust = directory.stored_config().policy.trust_remote_code
    parts = load(checkpoint.path, verified=checkpoint.manifest).parts
    tokenizer = load_tokenizer(str(directory.model / "policy"), trust_remote_code=trust)
    builders: dict[str, Callable[..., PreTrainedModel]] = {"policy": build_causal_lm, "critic": build_critic}
    names = [name for name in builders if f"{name}.params" in parts]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as making:
        exported = Path(making) / target.name  # the temporary directory itself is closed to other users
        for name in names:
            model = builders[name](str(directory.model / name), trust_remote_code=trust, dropout=0.0)
            export_model(model, parts[f"{name}.params"].tensors, tokenizer, exported / name)
        if target.exists():
            target.rmdir()
        exported.rename(target)
    return Export(checkpoint.manifest.step, tuple(target / name for name in sorted(names)))
