"""Events for TensorBoard are for eyes only: a disk that takes no more of them ends no run."""

import errno
import os
from pathlib import Path

import pytest

from yaoki.train.trackers import Board


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    board = Board(tmp_path, 1, said.append)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(board._writer, "flush", no_room)
    for step in (1, 2):
        board.write({"step": step, "reward": 0.5})
    assert said == ["nothing more is written for TensorBoard: [Errno 28] No space left on device"]
    board.close()
