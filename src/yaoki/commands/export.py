"""Models out of a run, for use elsewhere: read a checkpoint's weights, export them, evaluate them."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.checkpoint.io.reader import load
from yaoki.commands.checkpoints import find_checkpoint
from yaoki.config.schema import Config
from yaoki.errors import RefusedError, UsageError
from yaoki.models.critic import build_critic
from yaoki.models.determinism import configure
from yaoki.models.huggingface import export_model, load_tokenizer
from yaoki.models.policy import build_causal_lm, load_causal_lm
from yaoki.ranks.world import alone
from yaoki.rewards.pool import VerifierPool
from yaoki.rollout.collect import NoLog, collect
from yaoki.runs.directory import RunDirectory
from yaoki.seeding import Purpose
from yaoki.train.accuracy import Accuracy, accuracy
from yaoki.train.console import Console
from yaoki.train.dataset import Tasks
from yaoki.train.exchange import RolloutExchange
from yaoki.train.networks import Models, build_engine, choose_device
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
    model, tokenizer, step = _policy(source, at, config)
    torch.nn.Module.to(model, device)
    models = Models(policy=model, critic=None, reference=None, engine=model, tokenizer=tokenizer)
    prompts = Tasks(config, tokenizer, console).eval_prompts()
    if not prompts:
        raise UsageError(f"{source} has no evaluation tasks of its own", hint="name some with --data FILE")
    engine = build_engine(config, models, device)
    engine.load_weights(model.state_dict().items(), 0)
    data = config.data
    verifier = VerifierPool(data.verifier, data.verifier_workers, data.verifier_time_limit_s)
    with verifier, console.work("evaluating") as advance:
        rollouts = collect(
            engine,
            verifier,
            prompts,
            purpose=Purpose.EVALUATION,
            run_seed=config.train.seed,
            step=0,
            num_samples=config.eval.num_samples,
            batch_size=config.engine.batch_size,
            poll=_never_stop,
            on_progress=advance,
            log=NoLog(),
            peers=RolloutExchange(alone()),
        )
    return Evaluation(accuracy(rollouts), rollouts, step)


def _policy(
    source: Path, at: int | None, config: Config
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int | None]:
    trust = config.policy.trust_remote_code
    directory = RunDirectory(source)
    if not directory.exists:
        model = load_causal_lm(str(source), trust_remote_code=trust, dropout=0.0)
        return model, load_tokenizer(str(source), trust_remote_code=trust), None
    checkpoint = find_checkpoint(directory, at)
    folder = str(directory.model / "policy")
    model = build_causal_lm(folder, trust_remote_code=trust, dropout=0.0)
    parts = load(checkpoint.path, verified=checkpoint.manifest).parts
    model.load_state_dict(dict(parts["policy.params"].tensors))
    return model, load_tokenizer(folder, trust_remote_code=trust), checkpoint.manifest.step


def _never_stop() -> None:
    """Evaluation on its own has nothing to save; a signal simply ends it."""
