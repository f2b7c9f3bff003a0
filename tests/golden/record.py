"""Records the golden trajectories: `python -m tests.golden.record`. Only for a change that is meant to alter
them; say in the commit why it does."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.support.harness import EVERYTHING, make_config, run_to_end, trajectory
from yaoki.checkpoint.catalog import Catalog

GOLDEN = Path(__file__).with_name("trajectories.json")
VARIANTS = {
    "ppo": ["train.steps=4"],
    "ppo-everything": [*EVERYTHING, "train.steps=4"],
    "grpo": ["algorithm.name=grpo", "train.steps=4"],
}


def golden_rows(path: Path) -> list[dict[str, Any]]:
    """Every number of every step, with its fingerprints."""
    return trajectory(path)


def environment_of(path: Path) -> dict[str, Any]:
    """What the bits depend on, as the run's newest checkpoint says."""
    checkpoint = Catalog(path / "checkpoints").choose().checkpoint
    assert checkpoint is not None
    return dict(checkpoint.manifest.environment)


def main() -> None:
    torch.set_num_threads(1)
    rows, environment = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["YAOKI_CACHE"] = directory
        for variant, overrides in VARIANTS.items():
            path = Path(directory) / variant
            run_to_end(path, make_config(*overrides))
            rows[variant], environment = golden_rows(path), environment_of(path)
    GOLDEN.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
