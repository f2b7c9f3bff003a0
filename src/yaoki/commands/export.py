"""Models out of a run, for use elsewhere: read a checkpoint's weights, export them, evaluate them."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from yaoki.checkpoint.io.reader import load
from yaoki.commands.checkpoints import find_checkpoint
from yaoki.config.schema import Config
from yaoki.errors import RefusedError, UsageError
from yaoki.journal.journal import NullJournal
from yaoki.models.critic import build_critic
from yaoki.models.determinism import configure
from yaoki.models.huggingface import export_model, load_tokenizer
from yaoki.models.policy import build_causal_lm, load_causal_lm
from yaoki.ranks.world import alone
from yaoki.rewards.pool import VerifierPool
from yaoki.runs.directory import RunDirectory
from yaoki.train.accuracy import Accuracy, accuracy
from yaoki.train.console import Console
from yaoki.train.dataset import Tasks
from yaoki.train.device import choose_device
from yaoki.train.engine import build_collector, build_engine
from yaoki.types import Rollout


def export_run(directory: RunDirectory, at: int | None, target: Path) -> int:
    """Write policy (and critic) of a checkpoint as Hugging Face folders under `target`; returns the step.

    `target` must not exist or be empty; it appears as a whole. Raises RefusedError if it holds anything.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RefusedError(f"{target} is in the way", hint="name a new folder with --to")
    checkpoint = find_checkpoint(directory, at)
    config = directory.stored_config()
    parts = load(checkpoint.path, verified=checkpoint.manifest).parts
    trust = config.policy.trust_remote_code
    tokenizer = load_tokenizer(str(directory.model / "policy"), trust_remote_code=trust)
    builders: dict[str, Callable[..., PreTrainedModel]] = {"policy": build_causal_lm, "critic": build_critic}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as making:
        whole = Path(making) / target.name  # the temporary directory itself is closed to other users
        for name, build in builders.items():
            if f"{name}.params" in parts:
                model = build(str(directory.model / name), trust_remote_code=trust, dropout=0.0)
                export_model(model, parts[f"{name}.params"].tensors, tokenizer, whole / name)
        if target.exists():
            target.rmdir()
        whole.rename(target)
    return checkpoint.manifest.step


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `yaoki eval` found."""

    accuracy: Accuracy
    rollouts: list[Rollout]
    step: int | None
    """Step of the checkpoint; None for a model that is not of a run."""


def evaluate_model(source: Path, at: int | None, config: Config, console: Console) -> Evaluation:
    """Sample `config.eval.num_samples` completions of each evaluation task and judge them.

    `source` is a run directory or a model folder; `config` says everything else. UsageError without tasks.
    """
    configure(deterministic=config.run.deterministic, num_threads=config.run.num_threads)
    device = choose_device(config, alone())
    folder, weights, step = _policy(source, at, config)
    tokenizer = load_tokenizer(folder, trust_remote_code=config.policy.trust_remote_code)
    prompts = Tasks(config, tokenizer, console).eval_prompts()
    if not prompts:
        raise UsageError(f"{source} has no evaluation tasks of its own", hint="name some with --data FILE")
    engine = build_engine(config, folder, tokenizer, device)
    engine.load_weights(weights.items(), 0)
    data = config.data
    verifier = VerifierPool(data.verifier, data.verifier_workers, data.verifier_time_limit_s)
    with verifier, console.work("evaluating") as advance:
        # Nothing to save, so there is no poll: a signal simply ends it.
        collector = build_collector(config, engine, verifier, NullJournal(), alone(), lambda: None)
        rollouts = collector.evaluation(prompts, advance)
    return Evaluation(accuracy(rollouts), rollouts, step)


def _policy(source: Path, at: int | None, config: Config) -> tuple[str, Mapping[str, Tensor], int | None]:
    """Folder of architecture and tokenizer, weights, and step of the checkpoint."""
    directory = RunDirectory(source)
    if not directory.exists:
        trust = config.policy.trust_remote_code
        model = load_causal_lm(str(source), trust_remote_code=trust, dropout=0.0)
        return str(source), model.state_dict(), None
    checkpoint = find_checkpoint(directory, at)
    parts = load(checkpoint.path, verified=checkpoint.manifest).parts
    return str(directory.model / "policy"), parts["policy.params"].tensors, checkpoint.manifest.step
