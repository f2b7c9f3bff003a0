"""torchrun starts workers too; it needs nothing of ours."""

from collections.abc import Callable
from pathlib import Path

from .commands import OVERRIDES, assert_as_unbroken, outcomes


def test_torchrun_trains_what_our_launcher_trains(
    start: Callable, recipe: Path, tmp_path: Path, unbroken: Path
) -> None:
    run = tmp_path / "run"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    done = start(*torchrun, "yaoki", "train", str(recipe), *OVERRIDES, "--run", str(run)).done()
    assert done.code == 0, done.said
    assert outcomes(run) == ["finished"]
    assert "\n           the same command with train.steps=" in done.said, (
        "not one by our launcher, or by one worker"
    )
    assert_as_unbroken(run, unbroken)
