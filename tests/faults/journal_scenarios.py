"""The journal: micro-batches flushed, old steps pruned, parts set aside."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.rollouts import rollout
from yaoki.journal.journal import JournalIdentity, RolloutJournal
from yaoki.journal.recovery import Wanted, read_step_for
from yaoki.types import Prompt, Rollout

from .children import Acknowledge
from .scenario import tree

STEP = 7
NUM_PROMPTS = 3
BATCHES = [[(prompt, sample) for sample in range(2)] for prompt in range(NUM_PROMPTS)]
"""The micro-batches of every step, as (prompt, sample)."""


def prompts() -> list[Prompt]:
    return [rollout(index).prompt for index in range(NUM_PROMPTS)]


def identity(attempt: int = 1) -> JournalIdentity:
    return JournalIdentity(run_id="run-7", config_digest="c" * 32, attempt=attempt)


def journal(root: Path, attempt: int = 1) -> RolloutJournal:
    """One that flushes only when it is told to: parts do not depend on the clock."""
    return RolloutJournal(root / "rollouts", identity(attempt), flush_seconds=3600, flush_rollouts=1000)


def sampled(step: int, batch: int) -> list[Rollout]:
    """The same in every attempt: what a completion is depends on its place alone."""
    rows = [
        rollout(prompt, sample, token_ids=(step, prompt, sample, 9), reward=float((step + sample) % 2))
        for prompt, sample in BATCHES[batch]
    ]
    return [dataclasses.replace(row, step=step, policy_version=step - 1) for row in rows]


def fill(root: Path, step: int, batches: Sequence[int], attempt: int = 1) -> None:
    """Each of the micro-batches in a part of its own."""
    with journal(root, attempt) as opened:
        opened.open_step(step, step - 1, prompts())
        for batch in batches:
            opened.append(step, sampled(step, batch))
            opened.sync()


def found(root: Path, step: int) -> set[int]:
    """The micro-batches that the next attempt would not generate again; each must be what was sampled."""
    wanted = Wanted(identity(attempt=2), step, step - 1, prompts())
    contents = read_step_for(root / "rollouts" / f"step-{step:08d}", wanted)
    held = set()
    for batch, places in enumerate(BATCHES):
        samples = contents.find(places)
        if samples is None:
            continue
        held.add(batch)
        assert [(sample.completion, sample.verdict) for sample in samples] == [
            (row.completion, row.verdict) for row in sampled(step, batch)
        ]
    return held


def complete(root: Path, step: int) -> None:
    """What the next attempt does: only what is missing is made again."""
    with journal(root, attempt=2) as opened:
        opened.open_step(step, step - 1, prompts())
        for batch, places in enumerate(BATCHES):
            if opened.find(places) is None:
                opened.append(step, sampled(step, batch))
                opened.sync()


def end(root: Path) -> object:
    """Steps with what is found in them, and every name that is no part's."""
    names = sorted(path for path in tree(root) if not path.endswith(".parquet"))
    steps = [int(path.name.removeprefix("step-")) for path in sorted((root / "rollouts").glob("step-*[0-9]"))]
    return names, [(step, found(root, step)) for step in steps]


@dataclass(frozen=True)
class Flush:
    """Three micro-batches of a step, synced after the first and after the third."""

    name: str = "flush the journal"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        fill(root, STEP - 1, range(NUM_PROMPTS))

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        with journal(root) as opened:
            opened.open_step(STEP, STEP - 1, prompts())
            for batch, synced in ((0, [0]), (1, []), (2, [1, 2])):
                opened.append(STEP, sampled(STEP, batch))
                if synced:
                    opened.sync()
                for done in synced:
                    acknowledge(str(done))

    def check(self, root: Path, acknowledged: list[str]) -> str:
        assert found(root, STEP - 1) == {0, 1, 2}
        held = found(root, STEP)
        assert {int(batch) for batch in acknowledged} <= held
        return f"{len(held)} of 3"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        complete(root, STEP)

    def end(self, root: Path) -> object:
        return end(root)


@dataclass(frozen=True)
class PruneJournal:
    """Two of four steps go."""

    name: str = "prune the journal"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        for step in (1, 2, 3, 4):
            fill(root, step, range(NUM_PROMPTS))

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        with journal(root) as opened:
            opened.prune(2, "needed")
        acknowledge("pruned")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        assert found(root, 3) == found(root, 4) == {0, 1, 2}
        return f"{sum(found(root, step) == {0, 1, 2} for step in (1, 2))} old ones"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        with journal(root, attempt=2) as opened:
            opened.prune(2, "needed")

    def end(self, root: Path) -> object:
        return end(root)


@dataclass(frozen=True)
class SetAside:
    """A damaged part and one of another policy are moved into quarantine when their step is opened."""

    name: str = "set parts aside"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        fill(root, STEP, range(NUM_PROMPTS))
        directory = root / "rollouts" / f"step-{STEP:08d}"
        damaged = min(directory.iterdir())
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
        with journal(root / "other") as opened:
            opened.open_step(STEP, 99, prompts())
            opened.append(STEP, [dataclasses.replace(row, policy_version=99) for row in sampled(STEP, 0)])
        (stranger,) = (root / "other").rglob("*.parquet")
        stranger.rename(directory / stranger.name)
        shutil.rmtree(root / "other")

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        with journal(root) as opened:
            opened.open_step(STEP, STEP - 1, prompts())
        acknowledge("set aside")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        assert found(root, STEP) == {1, 2}
        parts = [Path(name) for name in tree(root) if name.endswith(".parquet")]
        assert len({path.name for path in parts}) == 4, "what cannot be used is kept"
        return f"{sum(path.parts[0] == 'quarantine' for path in parts)} aside"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        complete(root, STEP)

    def end(self, root: Path) -> object:
        return end(root)


JOURNALS = (Flush(), PruneJournal(), SetAside())
