"""Where parts go that cannot be used: out of the way, with the reason beside them. Nothing is deleted."""

import os
from pathlib import Path

from yaoki import fs
from yaoki.journal.step_parts import Refusal


def set_aside(refusal: Refusal, directory: Path) -> Refusal:
    """Move the file into `directory`, with `<name>.reason.txt` beside it; says where it is now.

    Durable on return. After a crash in between, the file is where it was and will be refused again.
    """
    fs.make_directory(directory)
    target = _free_name(directory, refusal.path.name)
    fs.publish(target.with_name(target.name + ".reason.txt"), f"{refusal}\n".encode("utf-8", "replace"))
    fs.replace_durably(refusal.path, target)
    return Refusal(target, refusal.reason)


def _free_name(directory: Path, name: str) -> Path:
    """`name`, or with a number where one of that name is there already."""
    target, count = directory / name, 1
    while os.path.lexists(target):
        count += 1
        target = directory / f"{name}.{count}"
    return target
