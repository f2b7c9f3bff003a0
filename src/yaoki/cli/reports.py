"""The output of commands on runs. Imports pyarrow, so a command imports this module when it runs."""

from collections.abc import Sequence

from yaoki.cli.render import duration, size, table
from yaoki.commands.checkpoints import CheckpointInfo, UnusableCheckpoint
from yaoki.commands.fork import Fork
from yaoki.commands.mine import Mined
from yaoki.commands.prove import UNBROKEN, Proof
from yaoki.commands.status import AttemptReport, NoResume, ResumeReport, StatusReport
from yaoki.journal.browse import RolloutRow
from yaoki.journal.retention import JournalSummary
from yaoki.runs.directory import RunDirectory
from yaoki.runs.lineage import Parent
from yaoki.runs.records import RunSummary
from yaoki.train.accuracy import Evaluation

_NUM_SHOWN = 5
"""Checkpoints in a status."""


def describe_outcome(summary: RunSummary, directory: RunDirectory, command: str) -> str:
    """The result of a finished run, and the next commands; `command` trains it for more steps."""
    path = directory.path
    attempts = "1 attempt" if summary.attempts == 1 else f"{summary.attempts} attempts"
    return f"""
run        {path}: {summary.steps} steps in {summary.train_seconds} s of training, {attempts}
accuracy   {_share(summary.accuracy_before)} before, {_share(summary.accuracy_after)} after (held out)

resume     for more steps:
           {command}
look       yaoki status {path}
           tensorboard --logdir {directory.tensorboard}
export     yaoki export {path} --to {path}/export
evaluate   yaoki eval {path} --samples 4"""


def describe_status(found: StatusReport) -> str:
    """A run on one screen."""
    lines = [
        f"run          {found.run} ({found.run_id})",
        f"step         {found.step} of {found.steps}, {found.train_seconds:.0f} s of training",
        f"reward       {_share(found.reward)}, held-out accuracy {_share(found.held_out_accuracy)}",
    ]
    if found.parent:
        origin = f"{found.parent.path} at step {found.parent.step}"
        lines.append(f"forked from  {origin}{_changes(found.parent)}")
    if found.in_use_by:
        lines.append(f"in use by    {found.in_use_by}")
    lines.append("attempts" if found.attempts else "attempts     none yet")
    lines += [f"  {_attempt(attempt)}" for attempt in found.attempts]
    lines.append("checkpoints" if found.checkpoints else "checkpoints  none yet")
    lines += [f"  {_checkpoint(checkpoint)}" for checkpoint in found.checkpoints[:_NUM_SHOWN]]
    if (num_left := len(found.checkpoints) - _NUM_SHOWN) > 0:
        lines.append(f"  and {num_left} older: yaoki checkpoints list {found.run}")
    lines.append(f"journal      {_journal(found.journal)}")
    return "\n".join([*lines, f"resume       {_resume(found.resume, found.step)}"])


def describe_fork(made: Fork) -> str:
    """The new run, and the command that trains it."""
    parent = made.parent
    lines = [
        f"run     {made.run} starts from step {parent.step} of {parent.path}{_changes(parent)}",
        f"state   {'hard links to' if made.linked else 'copies of'} the parent's checkpoint, verified",
    ]
    if made.begins_epoch:
        lines.append("data    other tasks or another order: it begins with the next epoch")
    return "\n".join([*lines, f"train   yaoki train --run {made.run}"])


def describe_rollouts(rows: Sequence[RolloutRow]) -> str:
    """Problem, answer and text of each rollout."""
    blocks = [
        f"step {row.step}, prompt {row.prompt}, sample {row.sample}: {row.verdict}, "
        f"{row.num_tokens} tokens, ended by {row.finish_reason}\n"
        f"problem    {_escaped(row.problem)}\n"
        f"answer     {_escaped(row.answer)}, found {_escaped(row.extracted or 'none')}\n"
        f"{_escaped(row.text)}"
        for row in rows
    ]
    return "\n\n".join(blocks) if blocks else "no such rollouts"


def describe_mined(found: Mined) -> str:
    """The number of hard prompts, their file, and the command that trains on it."""
    return (
        f"{found.num_kept} of {found.num_prompts} prompts of steps {found.first_step} to "
        f"{found.last_step} are in {found.path}\n"
        f"train on them: yaoki train ... 'data.files=[\"{found.path}\"]' data.format=orz"
    )


def describe_evaluation(found: Evaluation) -> str:
    """Accuracy with its interval, and the file of the completions."""
    ks = ", ".join(f"pass@{k} {value:.3f}" for k, value in found.pass_at_k.items() if k > 1)
    return (
        f"pass@1 {found.pass_at_1:.3f} (95 % interval {found.low:.3f} to {found.high:.3f}), "
        f"{found.num_tasks} tasks x {found.num_samples} samples"
        + (f"\n{ks}" if ks else "")
        + f"\ncompletions: {found.completions}"
    )


def _escaped(text: str) -> str:
    """Control characters as escapes: sampled text may contain a terminal's commands."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _changes(parent: Parent) -> str:
    return f", with other {', '.join(parent.changes)}" if parent.changes else ""


def _attempt(attempt: AttemptReport) -> str:
    reason = f": {attempt.reason}" if attempt.reason else ""
    steps = "1 step" if attempt.num_steps == 1 else f"{attempt.num_steps} steps"
    time = f" in {duration(attempt.ended_unix_s - attempt.started_unix_s)}" if attempt.ended_unix_s else ""
    return f"{attempt.attempt}  {attempt.outcome}{reason}; {steps}{time}"


def _checkpoint(found: CheckpointInfo | UnusableCheckpoint) -> str:
    if isinstance(found, UnusableCheckpoint):
        return f"{found.name}  {found.state}: {found.problem}"
    pins = f", pinned as {', '.join(found.pins)}" if found.pins else ""
    return (
        f"{found.name}  {size(found.size_bytes)}, attempt {found.attempt}, {duration(found.age_s)} old{pins}"
    )


def _journal(journal: JournalSummary) -> str:
    if not journal.num_steps:
        return "empty"
    first, last = journal.first_step, journal.last_step
    steps = f"step {first}" if first == last else f"{journal.num_steps} steps ({first} to {last})"
    return f"{steps} in {journal.num_segments} segments, {size(journal.num_bytes)}"


def _resume(resume: ResumeReport | NoResume, step: int) -> str:
    if isinstance(resume, NoResume):
        return f"impossible: {resume.problem}"
    if resume.finished:
        return f"nothing to do: the run is finished; with more train.steps {_start(resume)}"
    lines = [_start(resume), *(f"not used: {refusal}" for refusal in resume.refused)]
    reached = resume.step + resume.num_replayed_steps
    if resume.num_replayed_steps:
        steps = _steps(resume.step + 1, reached)
        lines.append(f"{steps} replayed from the journal, nothing sampled")
    if resume.num_reused_rollouts:
        lines.append(f"{resume.num_reused_rollouts} rollouts of step {reached + 1} reused from the journal")
        reached += 1
    if step > reached:
        lines.append(f"{_steps(reached + 1, step)} sampled again")
    return "\n             ".join(lines)


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _start(resume: ResumeReport) -> str:
    if resume.checkpoint is None:
        return "from step 0: no checkpoint was committed yet"
    why = f" ({'; '.join(resume.reasons)})" if resume.reasons else ""
    read = "" if resume.read_all else "; judged by its sizes, --verify reads it"
    by = "" if resume.num_workers == 1 else f" by {resume.num_workers} workers, as many as wrote it"
    return f"from {resume.checkpoint}, grade {resume.grade}{by}{why}{read}"


def describe_proof(proof: Proof) -> str:
    """Which components are equal in which run, and the conclusion."""
    runs = [run for run in proof.digests if run != UNBROKEN]
    words = {True: "equal", False: "differs"}
    rows = [
        (component, *(words[proof.is_equal(run, component)] for run in runs))
        for component in proof.components
    ]
    verdict = (
        f"Proved: over {proof.steps} steps, a run that was killed and resumed and one that was replayed from "
        "its journal\nended with the same bits as the unbroken one; with only weights restored it did not."
        if proof.holds
        else "NOT proved: a component differs that should be equal, or weights alone gave the same policy."
    )
    return f"\n{table([('compared with unbroken', *runs), *rows])}\n\n{verdict}"
