"""Text for the terminal: tables, sizes, durations, JSON, and the output of `yaoki checkpoints`."""

import json
from collections.abc import Sequence

from pydantic_core import to_jsonable_python

from yaoki.checkpoint.differences import PartDiff
from yaoki.commands.checkpoints import CheckpointInfo, PruneDecision, UnusableCheckpoint, VerifiedCheckpoint

_NUM_SHOWN_KEYS = 12


def json_text(report: object) -> str:
    """Dataclasses and plain values as indented JSON."""
    return json.dumps(to_jsonable_python(report), indent=2)


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
