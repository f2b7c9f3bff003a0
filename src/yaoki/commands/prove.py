"""`yaoki prove`: shows on a recipe, cut to a few steps, that a killed and resumed run is exact.

Four runs in processes of their own: one unbroken; one killed and resumed from a checkpoint; one without
checkpoints, killed and replayed from its journal; and one that restores its weights only, as other trainers
do. The first three must end with the same bits in every component, and the fourth with other bits, or the
comparison would prove nothing. Needs no torch: it compares digests that were written with the checkpoints.
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
from yaoki.journal.step_row import CLOCK_FIELDS, StepRow
from yaoki.runs.directory import RunDirectory

UNBROKEN, RESUMED, REPLAYED, WEIGHTS_ONLY = "unbroken", "killed and resumed", "replayed", "weights only"
_CLOCK_PARTS = ("lineage", "metrics")
"""Parts with the attempt's number and times, which no resume reproduces."""
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
"""The default recipe."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Digests of every component at the end of each run."""

    steps: int
    digests: dict[str, dict[str, str]]
    """Run -> component -> digest of its bits."""
    events: tuple[str, ...]
    """A log of what was done to the runs."""

    @property
    def components(self) -> list[str]:
        return list(self.digests[UNBROKEN])

    def is_equal(self, run: str, component: str) -> bool:
        """Whether a component has the same bits in a run as in the unbroken one."""
        return self.digests[run].get(component) == self.digests[UNBROKEN][component]

    @property
    def holds(self) -> bool:
        """Whether resumed and replayed equal unbroken in every component, and weights-only has another
        policy."""
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
    """Train the four runs in a temporary directory, or in the new directory `keep`.

    Args:
        recipe: None for a small one.
        seed: of the instants at which runs are killed.
        say: called with each event as it happens.

    Raises:
        UsageError, NothingThereError: the recipe cannot be used.
        RefusedError: `keep` exists.
        YaokiError: one of the runs failed; with the end of its log.
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
    """Trains the four runs in `scratch`; `words` are a recipe and overrides as for `yaoki train`."""

    def __init__(
        self, words: Sequence[str], scratch: Path, steps: int, seed: int, say: Callable[[str], None]
    ) -> None:
        own = ["run.show_samples_every=0", "journal.keep=all", "checkpoint.keep_last=100"]
        self._words = [*words, *own, 'run.storage=""', "run.max_seconds=0"]
        self._scratch = scratch
        self._steps = steps
        self._rng = random.Random(seed)
        self._say = say
        self._events: list[str] = []

    def prove(self) -> Proof:
        """Train and compare. YaokiError with the end of its log if a run fails."""
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
            self._require_success(name, process.wait())
        self._note(f"{name}: trained to step {self._steps}")

    def _killed(self, name: str, overrides: Sequence[str], after_step: int) -> None:
        """Kill the run at a random instant of the step after `after_step`, then resume it."""
        for _ in range(_TRIES):
            if self._is_killed(name, overrides, after_step):
                break
            shutil.rmtree(self._scratch / name)
        else:
            raise YaokiError(
                f"the run {name} finished before it was killed, {_TRIES} times",
                hint="its steps are too short: train more of them with --steps, or larger ones",
            )
        self._note(f"{name}: SIGKILL after the row of step {len(self._rows(name))}")
        self._train(name, overrides)
        reused = sum(row.timing.num_reused_rollouts for row in self._rows(name) if row.attempt == 2)
        self._note(f"{name}: resumed, {reused} rollouts taken from the journal")

    def _is_killed(self, name: str, overrides: Sequence[str], after_step: int) -> bool:
        """Start the run and kill it; False if it finished first."""
        with self._started(name, overrides) as process:
            while len(self._rows(name)) < after_step and process.poll() is None:
                time.sleep(_POLL_S)
            rows = self._rows(name)
            if rows:
                time.sleep(self._rng.uniform(0, 0.9 * rows[-1].timing.step_s))
            process.kill()
            if process.wait() == -signal.SIGKILL:
                return len(self._rows(name)) < self._steps
            self._require_success(name, process.returncode)
            return False

    def _require_success(self, name: str, exit_code: int) -> None:
        if exit_code != 0:
            log = self._log(name).read_text("utf-8", errors="replace")
            raise YaokiError(f"the run {name} ended with exit code {exit_code}:\n{log[-2000:]}")

    def _warm_started(self, name: str, source: str, step: int) -> None:
        """Train a new run from the weights of `step` alone, without the rest of the state."""
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
        """The process of a run, which is killed at the end of the block."""
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

    def _rows(self, name: str) -> list[StepRow]:
        return read_rows(RunDirectory(self._scratch / name).metrics_path)

    def _note(self, text: str) -> None:
        self._events.append(text)
        self._say(text)

    def _components(self, name: str) -> dict[str, str]:
        """Digests of the parts of the last checkpoint, of all rollouts and of the rows without times."""
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
        trajectory = [row.model_dump(exclude_unset=True, exclude=set(CLOCK_FIELDS)) for row in rows]
        return digests | {
            "rollouts": _digest([row.fingerprint["rollouts"] for row in rows]),
            "metrics rows": _digest(trajectory),
        }


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
