"""What a run does to its files, each thing on its own: the work that faults befall, and what must hold."""

from pathlib import Path
from typing import Protocol

from .children import Acknowledge


class Scenario(Protocol):
    """Work on the files below a folder `root`, and the promises that it makes."""

    name: str
    num_sampled: int
    """Points of the sample that every test run takes."""

    def prepare(self, root: Path) -> None:
        """The state before the work; nothing goes wrong here."""

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        """What the faults befall. Acknowledges each promise as the trainer would rely on it."""

    def check(self, root: Path, acknowledged: list[str]) -> str:
        """Nothing that was acknowledged is lost, nothing half done is accepted; says what is there."""

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        """What the next process does, from whatever it finds, to the same end in every case."""

    def end(self, root: Path) -> object:
        """What `go_on` comes to, in a form that is equal whatever happened before; every name is in it."""


def tree(root: Path) -> dict[str, bytes | None]:
    """Every path below `root`: bytes of files, None for directories."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }
