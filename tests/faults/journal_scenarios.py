"""The journal: micro-batches flushed, old steps pruned, segments quarantined."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.rollouts import rollout
from yaoki.journal.journal import RolloutJournal
from yaoki.journal.recovery import read_step_for
from yaoki.journal.segments import JournalIdentity
from yaoki.types import Prompt, Rollout, RolloutKey

from .children import Acknowledge
from .scenario import tree

STEP = 7
NUM_PROMPTS = 3
NUM_BATCHES, BATCH_SIZE = NUM_PROMPTS, 2


def keys_of(step: int, batch: int) -> list[RolloutKey]:
    """A micro-batch of a step: the group of one prompt."""
    return [RolloutKey(step, batch, sample) for sample in range(BATCH_SIZE)]


def prompts() -> list[Prompt]:
    return [rollout(index).prompt for index in range(NUM_PROMPTS)]


def identity(attempt: int = 1) -> JournalIdentity:
    return JournalIdentity(run_id="run-7", config_digest="c" * 32, attempt=attempt)


def journal(root: Path, attempt: int = 1) -> RolloutJournal:
    """One that flushes only when asked to: segments do not depend on the clock."""
    return RolloutJournal(root / "rollouts", identity(attempt), flush_seconds=3600, flush_rollouts=1000)


def sampled(step: int, batch: int) -> list[Rollout]:
    """The same in every attempt: a completion depends on its key alone."""
    return [
        dataclasses.replace(
            rollout(key.prompt, key.sample, token_ids=(*key, 9), reward=float((step + key.sample) % 2)),
            key=key,
            policy_version=step - 1,
        )
        for key in keys_of(step, batch)
    ]


def fill(root: Path, step: int, batches: Sequence[int], attempt: int = 1) -> None:
    """Each of the micro-batches in a segment of its own."""
    with journal(root, attempt) as opened:
        opened.open_step(step, step - 1, prompts())
        for batch in batches:
            opened.append(sampled(step, batch))
            opened.sync()


def found(root: Path, step: int) -> set[int]:
    """The micro-batches that the next attempt would not generate again; each must be what was sampled."""
    directory = root / "rollouts" / f"step-{step:08d}"
    contents = read_step_for(directory, identity(attempt=2), step, step - 1, prompts())
    held = set()
    for batch in range(NUM_BATCHES):
        judged = contents.find(keys_of(step, batch))
        if judged is not None:
            held.add(batch)
            assert judged == [row.judged for row in sampled(step, batch)]
    return held


def complete(root: Path, step: int) -> None:
    """What the next attempt does: only what is missing is made again."""
    with journal(root, attempt=2) as opened:
        opened.open_step(step, step - 1, prompts())
        for batch in range(NUM_BATCHES):
            if opened.find(keys_of(step, batch)) is None:
                opened.append(sampled(step, batch))
                opened.sync()


def end(root: Path) -> object:
    """Steps with what is found in them, and every name that is no segment's."""
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
                opened.append(sampled(STEP, batch))
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
class Quarantine:
    """A damaged segment and one of another policy are moved into quarantine when their step is opened."""

    name: str = "quarantine segments"
    num_sampled: int = 12

    def prepare(self, root: Path) -> None:
        fill(root, STEP, range(NUM_PROMPTS))
        directory = root / "rollouts" / f"step-{STEP:08d}"
        damaged = min(directory.iterdir())
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
        with journal(root / "other") as opened:
            opened.open_step(STEP, 99, prompts())
            opened.append([dataclasses.replace(row, policy_version=99) for row in sampled(STEP, 0)])
        (other,) = (root / "other").rglob("*.parquet")
        other.rename(directory / other.name)
        shutil.rmtree(root / "other")

    def work(self, root: Path, acknowledge: Acknowledge) -> None:
        with journal(root) as opened:
            opened.open_step(STEP, STEP - 1, prompts())
        acknowledge("quarantined")

    def check(self, root: Path, acknowledged: list[str]) -> str:
        assert found(root, STEP) == {1, 2}
        segments = [Path(name) for name in tree(root) if name.endswith(".parquet")]
        assert len({path.name for path in segments}) == 4, "what cannot be used is kept"
        return f"{sum(path.parts[0] == 'quarantine' for path in segments)} quarantined"

    def go_on(self, root: Path, acknowledge: Acknowledge) -> None:
        complete(root, STEP)

    def end(self, root: Path) -> object:
        return end(root)


JOURNALS = (Flush(), PruneJournal(), Quarantine())
