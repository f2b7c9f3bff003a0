"""The command line as a process of its own: how it is started, and what it said."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "tiny.toml"
OVERRIDES = [
    "run.device=cpu",
    "train.steps=2",
    "train.num_prompts=4",
    "train.group_size=4",
    "data.verifier=tests.support.judge:judge_by_hash",
    "policy.init_from=builtin:tiny-random",
    "policy.lr=3e-4",
    "engine.max_new_tokens=8",
    "engine.batch_size=8",
    'engine.stop=["a","e","i","1","2","3","=","<"]',
    "eval.every_steps=2",
    "eval.num_tasks=8",
    "checkpoint.every_steps=1",
]


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def run_process(*words: str, folder: Path) -> Done:
    """`yaoki WORDS` as a user would run it in `folder`, its output in pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "yaoki", *words], cwd=folder, capture_output=True, text=True, timeout=240
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Trained:
    """A run that the command line made; nobody may write into it."""

    folder: Path
    """Where the command was given; the run is in runs/tiny."""
    done: Done

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"


def assert_refused(done: Done, code: int, *parts: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.startswith("error: ") or "\nerror: " in done.err
    assert "\n\nhint: " in done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err
