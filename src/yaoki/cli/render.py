"""Text for the terminal: tables, sizes, durations, JSON, and the output of `yaoki checkpoints`."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_jsonable_python

_NUM_SHOWN_KEYS = 12


def json_text(report: object) -> str:
    """Dataclasses and plain values as indented JSON."""
    return json.dumps(to_jsonable_python(report), indent=2)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def describe_checkpoints(found: Sequence[dict[str, Any]]) -> str:
    """A line for each, and what is wrong with it."""
    heading = ("name", "state", "size", "age", "attempt", "parent", "accuracy", "parts", "pinned as")
    if not found:
        return "no checkpoints yet"
    return table([heading, *(_checkpoint_row(entry) for entry in found)])


def describe_checkpoint(entry: dict[str, Any]) -> str:
    """One that was read in full."""
    problem = entry["problem"]
    return f"{entry['name']}  " + (f"ok, {size(entry['size_bytes'])} read" if problem is None else problem)


def describe_pruning(found: Sequence[dict[str, Any]], *, dry_run: bool) -> str:
    """What stays, what goes, and why."""
    words = {False: "removed", True: "would go"}
    lines = [
        (
            entry["name"],
            "stays" if entry["stays"] else words[dry_run],
            "; ".join(entry["reasons"]) or "no rule keeps it",
        )
        for entry in found
    ]
    return table(lines) if lines else "no checkpoints yet"


def describe_diff(found: Sequence[dict[str, Any]]) -> str:
    """A line for each part; below it what changed in its JSON, key by key."""
    lines = []
    for entry in found:
        lines.append(f"{entry['part']:<20}  {_part(entry)}")
        changes = [] if "only_in" in entry else entry["json"]
        lines += [f"  {c['key']}: {c['before']} -> {c['after']}" for c in changes[:_NUM_SHOWN_KEYS]]
        if len(changes) > _NUM_SHOWN_KEYS:
            lines.append(f"  and {len(changes) - _NUM_SHOWN_KEYS} more keys")
    return "\n".join(lines)


def size(num_bytes: int) -> str:
    """Bytes in the largest unit in which they are at least 1."""
    for unit, bytes_per_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= bytes_per_unit:
            return f"{num_bytes / bytes_per_unit:.1f} {unit}"
    return f"{num_bytes} B"


def duration(seconds: float) -> str:
    """Seconds in the largest unit in which they are at least 2."""
    for unit, seconds_per_unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * seconds_per_unit:
            return f"{seconds / seconds_per_unit:.0f} {unit}"
    return f"{seconds:.0f} s"


def _checkpoint_row(entry: dict[str, Any]) -> tuple[str, ...]:
    if "size_bytes" not in entry:
        return (entry["name"], entry["state"], *[""] * 5, entry.get("problem", ""), _pins(entry))
    accuracy = entry["held_out_accuracy"]
    return (
        entry["name"],
        entry["state"],
        size(entry["size_bytes"]),
        duration(entry["age_s"]),
        str(entry["attempt"]),
        entry["parent"] or "-",
        "-" if accuracy is None else f"{accuracy:.3f}",
        str(len(entry["parts"])),
        _pins(entry),
    )


def _pins(entry: dict[str, Any]) -> str:
    return ", ".join(entry.get("pins", ()))


def _part(entry: dict[str, Any]) -> str:
    if "only_in" in entry:
        return f"only in the checkpoint {entry['only_in']}"
    if entry["equal"]:
        return "equal"
    tensors = entry["tensors"]
    found = []
    if entry["json"]:
        found.append("1 key differs" if len(entry["json"]) == 1 else f"{len(entry['json'])} keys differ")
    if tensors["num_different"]:
        num_common = tensors["num_different"] + tensors["num_equal"]
        found.append(
            f"{tensors['num_different']} of {num_common} tensors differ, "
            f"by {_number(tensors['max_abs_difference'])} at most, "
            f"relative norm {_number(tensors['relative_norm'])}"
        )
    for side in ("before", "after"):
        if number := tensors[f"num_only_{side}"]:
            found.append(f"{number} tensors only in the checkpoint {side}")
    return "; ".join(found)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
