"""`yaoki eval`: accuracy of a run's policy or of a model folder on evaluation tasks."""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.checkpoint.io.reader import load
from yaoki.commands.checkpoints import find_checkpoint
from yaoki.config.schema import Config
from yaoki.errors import UsageError
from yaoki.journal.browse import write_completions
from yaoki.models.determinism import configure
from yaoki.models.huggingface import load_tokenizer
from yaoki.models.policy import build_causal_lm, load_causal_lm
from yaoki.ranks.world import alone
from yaoki.rewards.pool import VerifierPool
from yaoki.rollout.collect import NoLog, collect
from yaoki.runs.directory import RunDirectory
from yaoki.seeding import Purpose
from yaoki.train.accuracy import Evaluation, accuracy
from yaoki.train.console import Console
from yaoki.train.dataset import Tasks
from yaoki.train.exchange import RolloutExchange
from yaoki.train.networks import Models, build_engine, choose_device


def evaluate(source: Path, at: int | None, config: Config, out: Path | None, console: Console) -> Evaluation:
    """Sample `config.eval.num_samples` completions of each evaluation task, judge them and write them.

    Args:
        source: a run directory or a model folder.
        at: step of the run's checkpoint; the newest one if None.
        out: Parquet file for the completions; None for one in `evals/`, named after source and step.

    Raises UsageError if there are no evaluation tasks.
    """
    configure(deterministic=config.run.deterministic, num_threads=config.run.num_threads)
    device = choose_device(config, alone())
    model, tokenizer, step = _load_policy(source, at, config)
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
            poll=lambda: None,
            on_progress=advance,
            log=NoLog(),
            peers=RolloutExchange(alone()),
        )
    name = "model" if step is None else f"step-{step:08d}"
    path = out or Path("evals") / f"{source.resolve().name}-{name}.parquet"
    write_completions(path, rollouts)
    return Evaluation(**asdict(accuracy(rollouts)), step=step, completions=path)


def _load_policy(
    source: Path, at: int | None, config: Config
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int | None]:
    """Model, tokenizer and the step of its weights; None for a model folder."""
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
