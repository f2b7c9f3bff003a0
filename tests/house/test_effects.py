"""Whatever changes files of a run goes through fs.py: tests of crashes put their faults there."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import yaoki.fs
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITES = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
NO_DATA = {"lock"}
"""Files of which nothing must survive."""


def changes_elsewhere(root: Path, work: Callable[[], object]) -> list[str]:
    """Changes below `root` that `work` makes and fs.py is not on the stack of."""
    read_end, write_end = os.pipe()
    child = os.fork()  # an audit hook stays until its process ends
    if child == 0:
        found: list[str] = []

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open":
                changes = isinstance(arguments[2], int) and bool(arguments[2] & WRITES)
            else:
                changes = event in CHANGES
            if not changes or not isinstance(arguments[0], str | os.PathLike):
                return
            path = Path(arguments[0])
            if path.is_relative_to(root) and path.name not in NO_DATA and not is_called_by_fs():
                found.append(f"{event} {path.relative_to(root)}")

        try:
            sys.addaudithook(hook)
            work()
            os.write(write_end, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer, "the work failed"
    return json.loads(answer)


def is_called_by_fs() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == yaoki.fs.__file__:
            return True
        frame = frame.f_back
    return False


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_change_goes_through_fs(scenario: Scenario, tmp_path: Path) -> None:
    scenario.prepare(tmp_path)
    assert changes_elsewhere(tmp_path, lambda: scenario.work(tmp_path, lambda promise: None)) == []


def test_a_change_elsewhere_is_found(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("x")
        (tmp_path / "file").rename(tmp_path / "other")
        os.remove(tmp_path / "other")
        yaoki.fs.publish(tmp_path / "allowed", b"x")

    assert changes_elsewhere(tmp_path, work) == [
        "os.mkdir folder",
        "open file",
        "os.rename file",
        "os.remove other",
    ]
