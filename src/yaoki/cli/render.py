"""What the commands print, as text made from plain values. Knows nothing of how they were found."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yaoki.checkpoint.differences import PartDiff
from yaoki.commands.checkpoints import CheckpointInfo, PruneDecision, UnusableCheckpoint, VerifiedCheckpoint
from yaoki.commands.prove import UNBROKEN, Proof
from yaoki.runs.directory import RunDirectory

_NUM_SHOWN = 5
"""Checkpoints in a status."""


def describe_outcome(summary: dict[str, Any], directory: RunDirectory, command: str) -> str:
    """The end of a run: what it reached, and what to do with it. `command` goes on with it for more steps."""
    path = directory.path
    attempts = "1 attempt" if summary["attempts"] == 1 else f"{summary['attempts']} attempts"
    return f"""
run        {path}: {summary["steps"]} steps in {summary["train_seconds"]} s of training, {attempts}
accuracy   {_share(summary["accuracy_before"])} before, {_share(summary["accuracy_after"])} after (held out)

resume     the command that started it goes on where it was; for more steps:
           {command}
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
    if parent := found["parent"]:
        lines.append(f"forked from  {parent['path']} at step {parent['step']}{_changes(parent)}")
    if found["in_use_by"]:
        lines.append(f"in use by    {found['in_use_by']}")
    lines.append("attempts" if found["attempts"] else "attempts     none yet")
    lines += [f"  {_attempt(attempt)}" for attempt in found["attempts"]]
    checkpoints = found["checkpoints"]
    lines.append("checkpoints" if checkpoints else "checkpoints  none yet")
    lines += [f"  {_checkpoint(checkpoint)}" for checkpoint in checkpoints[:_NUM_SHOWN]]
    if len(checkpoints) > _NUM_SHOWN:
        num_left = len(checkpoints) - _NUM_SHOWN
        lines.append(f"  and {num_left} older: yaoki checkpoints list {found['run']}")
    lines.append(f"journal      {_journal(found['journal'])}")
    return "\n".join([*lines, f"resume       {_resume(found['resume'], found['step'])}"])


def describe_fork(found: dict[str, Any]) -> str:
    """What was made, and how to go on."""
    parent = found["parent"]
    lines = [
        f"run     {found['run']} goes on from step {parent['step']} of {parent['path']}{_changes(parent)}",
        f"state   {'hard links to' if found['linked'] else 'copies of'} the parent's checkpoint, verified",
    ]
    if found["begins_epoch"]:
        lines.append("data    other tasks or another order: it begins with the next epoch")
    return "\n".join([*lines, f"train   yaoki train --run {found['run']}"])


def describe_rollouts(found: Sequence[dict[str, Any]]) -> str:
    """Problem, answer and text of each rollout, one below the other."""
    blocks = [
        f"step {row['step']}, prompt {row['prompt']}, sample {row['sample']}: {row['verdict']}, "
        f"{row['num_tokens']} tokens, ended by {row['finish_reason']}\n"
        f"problem    {_harmless(row['problem'])}\n"
        f"answer     {_harmless(row['answer'])}, found {_harmless(row['extracted'] or 'none')}\n"
        f"{_harmless(row['text'])}"
        for row in found
    ]
    return "\n\n".join(blocks) if blocks else "no such rollouts"


def describe_mined(found: dict[str, Any]) -> str:
    """How many prompts were hard, and where they are."""
    return (
        f"{found['num_kept']} of {found['num_prompts']} prompts of steps {found['first_step']} to "
        f"{found['last_step']} are in {found['path']}\n"
        f"train on them: yaoki train ... 'data.files=[\"{found['path']}\"]' data.format=orz"
    )


def describe_evaluation(result: dict[str, Any]) -> str:
    """Accuracy with its interval, and where the completions are."""
    ks = ", ".join(f"pass@{k} {value:.3f}" for k, value in result["pass_at_k"].items() if k > 1)
    return (
        f"pass@1 {result['pass_at_1']:.3f} (95 % interval {result['low']:.3f} to {result['high']:.3f}), "
        f"{result['num_tasks']} tasks x {result['num_samples']} samples"
        + (f"\n{ks}" if ks else "")
        + f"\ncompletions: {result['completions']}"
    )


def _harmless(text: str) -> str:
    """Sampled text may hold what a terminal takes for commands: control characters as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _changes(parent: dict[str, Any]) -> str:
    return f", with other {', '.join(parent['changes'])}" if parent["changes"] else ""


def _attempt(attempt: dict[str, Any]) -> str:
    reason = f": {attempt['reason']}" if "reason" in attempt else ""
    steps = "1 step" if attempt["num_steps"] == 1 else f"{attempt['num_steps']} steps"
    time = ""
    if "ended_unix_s" in attempt:
        time = f" in {duration(attempt['ended_unix_s'] - attempt['started_unix_s'])}"
    return f"{attempt['attempt']}  {attempt['outcome']}{reason}; {steps}{time}"


def _checkpoint(checkpoint: dict[str, Any]) -> str:
    if "size_bytes" not in checkpoint:
        return f"{checkpoint['name']}  {checkpoint['state']}: {checkpoint['problem']}"
    pins = f", pinned as {', '.join(checkpoint['pins'])}" if checkpoint["pins"] else ""
    return (
        f"{checkpoint['name']}  {size(checkpoint['size_bytes'])}, attempt {checkpoint['attempt']}, "
        f"{duration(checkpoint['age_s'])} old{pins}"
    )


def _journal(journal: dict[str, Any]) -> str:
    if not journal["num_steps"]:
        return "empty"
    first, last = journal["first_step"], journal["last_step"]
    steps = f"step {first}" if first == last else f"{journal['num_steps']} steps ({first} to {last})"
    return f"{steps} in {journal['num_parts']} parts, {size(journal['num_bytes'])}"


def _resume(resume: dict[str, Any], step: int) -> str:
    if not resume["possible"]:
        return f"impossible: {resume['problem']}"
    if resume["finished"]:
        return f"nothing to do: the run is finished; with more train.steps {_start(resume)}"
    lines = [_start(resume), *(f"not used: {refusal}" for refusal in resume["refused"])]
    reached = resume["step"] + resume["num_replayed_steps"]
    if resume["num_replayed_steps"]:
        steps = _steps(resume["step"] + 1, reached)
        lines.append(f"{steps} again from the journal, nothing sampled")
    if resume["num_reused_rollouts"]:
        lines.append(f"{resume['num_reused_rollouts']} rollouts of step {reached + 1} are there already")
        reached += 1
    if step > reached:
        lines.append(f"{_steps(reached + 1, step)} sampled again")
    return "\n             ".join(lines)


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _start(resume: dict[str, Any]) -> str:
    if resume["checkpoint"] is None:
        return "from step 0: no checkpoint was committed yet"
    why = f" ({'; '.join(resume['reasons'])})" if resume["reasons"] else ""
    read = "" if resume["read_all"] else "; judged by its sizes, --verify reads it"
    by = "" if resume["num_workers"] == 1 else f" by {resume['num_workers']} workers, as many as wrote it"
    return f"from {resume['checkpoint']}, grade {resume['grade']}{by}{why}{read}"


def describe_proof(proof: Proof) -> str:
    """A table of what is equal, and what it means in words."""
    runs = [run for run in proof.digests if run != UNBROKEN]
    words = {True: "equal", False: "differs"}
    rows = [
        (component, *(words[proof.is_equal(run, component)] for run in runs))
        for component in proof.components
    ]
    verdict = (
        f"Proved: over {proof.steps} steps, a run that was killed and resumed and one that was replayed from "
        "its journal\nended with the same bits as the unbroken one; with its weights alone it became another."
        if proof.holds
        else "NOT proved: see what differs where it should be equal, or is equal where it should differ."
    )
    return f"\n{table([('compared with unbroken', *runs), *rows])}\n\n{verdict}"


_NUM_SHOWN_KEYS = 12


def as_json(report: Any) -> str:
    """A dataclass, or a list of them, as indented JSON."""
    plain = [asdict(each) for each in report] if isinstance(report, list) else asdict(report)
    return json.dumps(plain, indent=2, default=str)  # a path is the only value that JSON lacks


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, two spaces apart; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def describe_checkpoints(found: Sequence[CheckpointInfo | UnusableCheckpoint]) -> str:
    """A line for each checkpoint."""
    heading = ("name", "state", "size", "age", "attempt", "parent", "accuracy", "parts", "pinned as")
    if not found:
        return "no checkpoints yet"
    return table([heading, *(_checkpoint_row(entry) for entry in found)])


def describe_checkpoint(found: VerifiedCheckpoint) -> str:
    """The outcome of a verification."""
    return f"{found.name}  {found.problem or f'ok, {size(found.size_bytes or 0)} read'}"


def describe_pruning(found: Sequence[PruneDecision], *, dry_run: bool) -> str:
    """A line for each checkpoint: whether it stays, and why."""
    words = {False: "removed", True: "would go"}
    lines = [
        (
            decision.name,
            "stays" if decision.stays else words[dry_run],
            "; ".join(decision.reasons) or "no rule keeps it",
        )
        for decision in found
    ]
    return table(lines) if lines else "no checkpoints yet"


def describe_diff(found: Sequence[PartDiff]) -> str:
    """A line for each part; below it the values in its JSON that differ."""
    lines = []
    for part in found:
        lines.append(f"{part.part:<20}  {_part(part)}")
        changes = [] if part.only_in else part.json
        lines += [f"  {c.key}: {c.before} -> {c.after}" for c in changes[:_NUM_SHOWN_KEYS]]
        if len(changes) > _NUM_SHOWN_KEYS:
            lines.append(f"  and {len(changes) - _NUM_SHOWN_KEYS} more keys")
    return "\n".join(lines)


def size(num_bytes: int) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, bytes_per_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= bytes_per_unit:
            return f"{num_bytes / bytes_per_unit:.1f} {unit}"
    return f"{num_bytes} B"


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for unit, seconds_per_unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * seconds_per_unit:
            return f"{seconds / seconds_per_unit:.0f} {unit}"
    return f"{seconds:.0f} s"


def _checkpoint_row(found: CheckpointInfo | UnusableCheckpoint) -> tuple[str, ...]:
    pins = ", ".join(found.pins)
    if isinstance(found, UnusableCheckpoint):
        return (found.name, found.state, *[""] * 5, found.problem, pins)
    return (
        found.name,
        found.state,
        size(found.size_bytes),
        duration(found.age_s),
        str(found.attempt),
        found.parent or "-",
        "-" if found.held_out_accuracy is None else f"{found.held_out_accuracy:.3f}",
        str(len(found.parts)),
        pins,
    )


def _part(part: PartDiff) -> str:
    if part.only_in:
        return f"only in the checkpoint {part.only_in}"
    if part.equal:
        return "equal"
    tensors, found = part.tensors, []
    if part.json:
        found.append("1 key differs" if len(part.json) == 1 else f"{len(part.json)} keys differ")
    if tensors.num_different:
        found.append(
            f"{tensors.num_different} of {tensors.num_different + tensors.num_equal} tensors differ, "
            f"by {_number(tensors.max_abs_difference)} at most, "
            f"relative norm {_number(tensors.relative_norm)}"
        )
    for side, number in (("before", tensors.num_only_before), ("after", tensors.num_only_after)):
        if number:
            found.append(f"{number} tensors only in the checkpoint {side}")
    return "; ".join(found)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
