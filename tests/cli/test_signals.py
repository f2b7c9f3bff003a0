"""A signal before training listens is a request to stop, too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yaoki.launch.process import LAUNCHER_PID

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.toml"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_everything_is_imported(number: signal.Signals, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != LAUNCHER_PID}
    process = subprocess.Popen(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "yaoki",
            "train",
            str(RECIPE),
            "--run",
            str(tmp_path / "run"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert process.stderr is not None
    while "torch" not in (line := process.stderr.readline()):
        assert line, "it ended before it imported torch"
    time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75
    assert f"stopped: {number.name} received; the same command resumes the run" in said
    assert "Traceback" not in said
