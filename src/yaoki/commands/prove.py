"""The proof of exactness on a user's own recipe, cut to a few steps: real processes, really killed.

Four runs: one unbroken; one killed and resumed from a checkpoint; one without checkpoints, killed and
replayed from its journal; and one that gets back its weights only, as other trainers do. The first three
must end with the same bits in every component, the fourth must not, or the comparison would prove nothing.
No torch in here: what is compared are digests that were written with the checkpoints.
"""

import contextlib
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaoki.checkpoint.layout import STATE
from yaoki.checkpoint.verify import verify
from yaoki.config.load import load_config
from yaoki.errors import RefusedError, YaokiError
from yaoki.journal.metrics import read_rows
from yaoki.journal.step_row import CLOCK_FIELDS
from yaoki.runs.directory import RunDirectory

UNBROKEN, RESUMED, REPLAYED, WEIGHTS_ONLY = "unbroken", "killed and resumed", "replayed", "weights only"
_CLOCK_PARTS = ("lineage", "metrics")
"""Parts that hold the attempt's number and times, which nobody promises to reproduce."""
_POLL_S = 0.01
_TRIES = 5
_SMALL = """\
run.num_threads = 1
train = { num_prompts = 8, group_size = 4 }
data = { family = "arithmetic", template = "short" }
policy = { init_from = "builtin:tiny-random" }
engine = { max_new_tokens = 16 }
eval = { num_tasks = 16 }
"""
"""The recipe that is proved if none is named."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Digest of every component at the end of each run, and what happened on the way."""

    steps: int
    digests: dict[str, dict[str, str]]
    """Run -> component -> digest of its bits."""
    events: tuple[str, ...]
    """What was done to the runs, in words."""

    @property
    def components(self) -> list[str]:
        return list(self.digests[UNBROKEN])

    def is_equal(self, run: str, component: str) -> bool:
        """Whether a component of a run has the bits of the unbroken run."""
        return self.digests[run].get(component) == self.digests[UNBROKEN][component]

    @property
    def holds(self) -> bool:
        """Resumed and replayed agree with unbroken in everything, weights-only not even in the policy."""
        exact = all(self.is_equal(run, c) for run in (RESUMED, REPLAYED) for c in self.components)
        return exact and not self.is_equal(WEIGHTS_ONLY, "policy.params")


def prove(
    recipe: Path | None,
    overrides: Sequence[str],
    keep: Path | None,
    steps: int,
    seed: int,
    say: Callable[[str], None],
) -> Proof:
    """Do the four runs in a directory that is removed again, or in the new directory `keep`.

    Raises UsageError or NothingThereError for a recipe that cannot be used, RefusedError if `keep` is there,
    YaokiError with its log if one of the runs fails.
    """
    if keep is not None and keep.exists():
        raise RefusedError(f"{keep} already exists", hint="name a new directory with --keep")
    with contextlib.ExitStack() as stack:
        scratch = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yaoki-prove-")))
        scratch.mkdir(parents=True, exist_ok=True)
        if recipe is None:
            recipe = scratch / "small.toml"
            recipe.write_text(_SMALL, "utf-8")
        load_config(recipe, overrides)
        return Prover([str(recipe), *overrides], scratch, steps, seed, say).prove()


class Prover:
    """Runs the four in a scratch directory; `words` are a recipe and overrides as for `yaoki train`."""

    def __init__(
        self, words: Sequence[str], scratch: Path, steps: int, seed: int, say: Callable[[str], None]
    ) -> None:
        own = ["run.show_samples_every=0", "journal.keep=all", "checkpoint.keep_last=100"]
        self._words = [*words, *own, 'run.storage=""', "run.max_seconds=0"]  # the runs are nobody else's
        self._scratch = scratch
        self._steps = steps
        self._rng = random.Random(seed)
        self._say = say
        self._events: list[str] = []

    def prove(self) -> Proof:
        """Do all four runs. YaokiError with the log if one of them fails."""
        half = self._steps // 2
        often = [f"checkpoint.every_steps={half}"]
        self._train("unbroken", often)
        self._killed("resumed", often, after_step=half + 1)
        self._killed("replayed", ["checkpoint.every_steps=0"], after_step=self._steps - 1)
        self._warm_started("weights-only", "unbroken", half)
        names = {UNBROKEN: "unbroken", RESUMED: "resumed", REPLAYED: "replayed", WEIGHTS_ONLY: "weights-only"}
        digests = {shown: self._components(name) for shown, name in names.items()}
        return Proof(self._steps, digests, tuple(self._events))

    def _train(self, name: str, overrides: Sequence[str]) -> None:
        with self._started(name, overrides) as process:
            self._require_fine(name, process.wait())
        self._note(f"{name}: trained to step {self._steps}")

    def _killed(self, name: str, overrides: Sequence[str], after_step: int) -> None:
        """SIGKILL at a random instant of the step that follows `after_step`, then the same command again."""
        for _ in range(_TRIES):
            if self._is_killed(name, overrides, after_step):
                break
            shutil.rmtree(self._scratch / name)
        else:
            raise YaokiError(
                f"the run {name} was at its end {_TRIES} times before it could be killed",
                hint="its steps are too short: prove more of them with --steps, or larger ones",
            )
        self._note(f"{name}: SIGKILL after the row of step {len(self._rows(name))}")
        self._train(name, overrides)
        reused = sum(row["timing"]["num_reused_rollouts"] for row in self._rows(name) if row["attempt"] == 2)
        self._note(f"{name}: resumed, {reused} rollouts taken from the journal")

    def _is_killed(self, name: str, overrides: Sequence[str], after_step: int) -> bool:
        """False if the run came to its end first."""
        with self._started(name, overrides) as process:
            while len(self._rows(name)) < after_step and process.poll() is None:
                time.sleep(_POLL_S)
            rows = self._rows(name)
            if rows:
                time.sleep(self._rng.uniform(0, 0.9 * rows[-1]["timing"]["step_s"]))
            process.kill()
            if process.wait() == -signal.SIGKILL:
                return len(self._rows(name)) < self._steps
            self._require_fine(name, process.returncode)
            return False

    def _require_fine(self, name: str, exit_code: int) -> None:
        if exit_code != 0:
            log = self._log(name).read_text("utf-8", errors="replace")
            raise YaokiError(f"the run {name} ended with exit code {exit_code}:\n{log[-2000:]}")

    def _warm_started(self, name: str, source: str, step: int) -> None:
        """What resuming is without the rest of the state: weights exported at `step`, a new run from them."""
        model = self._scratch / "exported"
        command = ["export", str(self._scratch / source), "--at", str(step), "--to", str(model)]
        subprocess.run(self._yaoki(*command), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        overrides = [f"policy.init_from={json.dumps(str(model / 'policy'))}"]
        if (model / "critic").exists():
            overrides.append(f"critic.init_from={json.dumps(str(model / 'critic'))}")
        self._note(f"{name}: new run from the weights of step {step} of {source}")
        self._train(name, [*overrides, f"train.steps={self._steps - step}"])

    @contextmanager
    def _started(self, name: str, overrides: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """A run that does not outlive the proof."""
        words = [*self._words, f"train.steps={self._steps}", *overrides]
        command = self._yaoki("train", "--run", str(self._scratch / name), *words)
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _yaoki(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "yaoki", *words]

    def _log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return [row.to_json() for row in read_rows(self._scratch / name / "metrics.jsonl")]

    def _note(self, text: str) -> None:
        self._events.append(text)
        self._say(text)

    def _components(self, name: str) -> dict[str, str]:
        """Digest of every part of the last checkpoint that bits can be promised of, and of the rows."""
        choice = RunDirectory(self._scratch / name).choose_checkpoint()
        assert choice.checkpoint is not None
        manifest = verify(choice.checkpoint.path)
        owner = {shard.file: tensor.part for tensor in manifest.tensors for shard in tensor.shards}
        digests = {owner[file.name]: _digest(file.xxh3_128) for file in manifest.files if file.name in owner}
        state = json.loads((choice.checkpoint.path / STATE).read_text("utf-8"))
        for part, value in {**state["shared"], **state["per_rank"][0]}.items():
            if part not in _CLOCK_PARTS:
                digests[part] = _digest(value)
        rows = self._rows(name)
        trajectory = [{key: row[key] for key in row if key not in CLOCK_FIELDS} for row in rows]
        return digests | {
            "rollouts": _digest([row["fingerprint"]["rollouts"] for row in rows]),
            "metrics rows": _digest(trajectory),
        }


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
