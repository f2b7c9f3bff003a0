"""Shows on the terminal what another process appends to a log."""

import sys
from pathlib import Path


class Follower:
    """From the end that the log has now; whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        """What has come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._shown += len(whole)
        sys.stderr.write(whole.decode("utf-8", errors="replace"))
        sys.stderr.flush()
