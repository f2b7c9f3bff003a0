"""What the commands print, as text made from plain values. Knows nothing of how they were found."""

from typing import Any

from yaoki.run.directory import RunDirectory


def describe_outcome(summary: dict[str, Any], directory: RunDirectory) -> str:
    """The end of a run: what it reached, and what to do with it."""
    path = directory.path
    attempts = "1 attempt" if summary["attempts"] == 1 else f"{summary['attempts']} attempts"
    return f"""
run        {path}: {summary["steps"]} steps in {summary["train_seconds"]} s of training, {attempts}
accuracy   {_share(summary["accuracy_before"])} before, {_share(summary["accuracy_after"])} after (held out)

resume     the command that started it goes on where it was; for more steps:
           yaoki train --run {path} train.steps={2 * summary["steps"]}
look       yaoki status {path}
           tensorboard --logdir {directory.tensorboard}
export     yaoki export {path} --to {path}/export
evaluate   yaoki eval {path} --samples 4"""


def describe_status(found: dict[str, Any]) -> str:
    """A run in a screenful."""
    lines = [
        f"run          {found['run']} ({found['run_id']})",
        f"step         {found['step']} of {found['steps']}, {found['train_seconds']:.0f} s of training",
        f"reward       {_share(found['reward'])}, held-out accuracy {_share(found['held_out_accuracy'])}",
    ]
    if found["in_use_by"]:
        lines.append(f"in use by    {found['in_use_by']}")
    lines.append("attempts")
    lines += [f"  {_attempt(attempt)}" for attempt in found["attempts"]]
    lines.append("checkpoints" if found["checkpoints"] else "checkpoints  none yet")
    lines += [f"  {_checkpoint(checkpoint)}" for checkpoint in found["checkpoints"]]
    return "\n".join([*lines, f"resume       {_resume(found['resume'])}"])


def describe_evaluation(result: dict[str, Any]) -> str:
    """Accuracy with its interval, and where the completions are."""
    ks = ", ".join(f"pass@{k} {value:.3f}" for k, value in result["pass_at_k"].items() if k > 1)
    return (
        f"pass@1 {result['pass_at_1']:.3f} (95 % interval {result['low']:.3f} to {result['high']:.3f}), "
        f"{result['num_tasks']} tasks x {result['num_samples']} samples"
        + (f"\n{ks}" if ks else "")
        + f"\ncompletions: {result['completions']}"
    )


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _attempt(attempt: dict[str, Any]) -> str:
    reason = f": {attempt['reason']}" if "reason" in attempt else ""
    return f"{attempt['attempt']}  {attempt['outcome']}{reason}"


def _checkpoint(checkpoint: dict[str, Any]) -> str:
    if "problem" in checkpoint:
        return f"{checkpoint['name']}  cannot be used: {checkpoint['problem']}"
    return (
        f"{checkpoint['name']}  {checkpoint['size_bytes'] / 1e6:.1f} MB, attempt {checkpoint['attempt']}, "
        f"{checkpoint['age_s']} s old"
    )


def _resume(resume: dict[str, Any]) -> str:
    if not resume["possible"]:
        return f"impossible: {resume['problem']}"
    if resume["checkpoint"] is None:
        return "from step 0: no checkpoint was committed yet"
    why = f" ({'; '.join(resume['reasons'])})" if resume["reasons"] else ""
    passed_over = "".join(f"\n             not used: {refusal}" for refusal in resume["refused"])
    return f"from {resume['checkpoint']}, grade {resume['grade']}{why}{passed_over}"
