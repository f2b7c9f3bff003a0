"""`yaoki eval`: accuracy of a run's policy or of a model folder on evaluation tasks."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from yaoki.checkpoint.io.reader import load
from yaoki.commands.checkpoints import find_checkpoint
from yaoki.config.schema import Config
from yaoki.errors import UsageError
from yaoki.journal.browse import write_completions
from yaoki.journal.journal import NullJournal
from yaoki.models.determinism import configure
from yaoki.models.huggingface import load_tokenizer
from yaoki.models.policy import load_causal_lm
from yaoki.ranks.world import alone
from yaoki.rewards.pool import VerifierPool
from yaoki.runs.directory import RunDirectory
from yaoki.train.accuracy import Evaluation, accuracy
from yaoki.train.console import Console
from yaoki.train.dataset import Tasks
from yaoki.train.device import choose_device
from yaoki.train.engine import build_collector, build_engine


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
    folder, weights, step = _load_policy(source, at, config)
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
    name = "model" if step is None else f"step-{step:08d}"
    path = out or Path("evals") / f"{source.resolve().name}-{name}.parquet"
    write_completions(path, rollouts)
    return Evaluation(**asdict(accuracy(rollouts)), step=step, completions=path)


def _load_policy(
    source: Path, at: int | None, config: Config
) -> tuple[str, Mapping[str, Tensor], int | None]:
    """Folder of architecture and tokenizer, weights, and their step; None for a model folder."""
    directory = RunDirectory(source)
    if not directory.exists:
        trust = config.policy.trust_remote_code
        model = load_causal_lm(str(source), trust_remote_code=trust, dropout=0.0)
        return str(source), model.state_dict(), None
    checkpoint = find_checkpoint(directory, at)
    parts = load(checkpoint.path, verified=checkpoint.manifest).parts
    return str(directory.model / "policy"), parts["policy.params"].tensors, checkpoint.manifest.step
