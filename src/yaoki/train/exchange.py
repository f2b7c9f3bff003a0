"""What the ranks of a run tell one another while rollouts are collected.

It knows nothing of how rollouts are made or kept.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from yaoki.errors import NothingThereError
from yaoki.journal.columns import Sample, pack, unpack
from yaoki.journal.journal import RolloutJournal
from yaoki.ranks.world import World
from yaoki.rollout.collect import Place
from yaoki.train.console import Console
from yaoki.types import Prompt, Rollout


class RolloutExchange:
    """The ranks among which the micro-batches of a step are dealt out; see `collect`."""

    def __init__(self, world: World, ranks_per_engine: int = 1) -> None:
        """`ranks_per_engine` neighbours generate together; it divides the number of ranks."""
        self._world = world
        self.share = world.rank // ranks_per_engine
        self.num_shares = world.size // ranks_per_engine

    def any_reason(self, mine: str | None) -> str | None:
        """The reason that some rank gives; all must ask."""
        return self._world.loop.any_reason(mine)

    def exchange(self, rollouts: Sequence[Rollout]) -> Mapping[tuple[int, int], Sample]:
        """What all ranks were handed, by (index of the prompt, sample); all must give theirs."""
        if self._world.size == 1:
            return {(r.prompt_index, r.sample): Sample(r.completion, r.verdict) for r in rollouts}
        found: dict[tuple[int, int], Sample] = {}
        for message in self._world.loop.gather(pack(rollouts)):
            found |= unpack(message)
        return found


class StepJournal:
    """A RolloutLog over the run's journal; without a journal nothing is kept and nothing is found."""

    def __init__(
        self,
        journal: RolloutJournal | None,
        console: Console,
        on_phase: Callable[[str], None],
        wait: Callable[[], None],
        *,
        replay_only: bool,
    ) -> None:
        """`wait` returns when all ranks have come so far. `on_phase` hears when the replay ends and when the
        first new rollouts are there. With `replay_only` a rollout that the journal does not hold is an error
        and is not sampled."""
        self._journal = journal
        self._console = console
        self._on_phase = on_phase
        self._wait = wait
        self._phases = deque(["replay", "first_rollout"])
        self.replay_only = replay_only
        self._step = 0
        self.num_reused = 0
        """Rollouts of the step at hand that were found."""

    def open_step(self, step: int, policy_version: int, prompts: Sequence[Prompt]) -> None:
        """Find out what there is of `step`, counted from 1 as in metrics.jsonl."""
        self._step, self.num_reused = step, 0
        if self._journal is not None:
            self._journal.open_step(step, policy_version, prompts, self._wait)
            for refusal in self._journal.take_quarantined():
                self._console.warn(f"set aside: {refusal}")

    def find(self, places: Sequence[Place]) -> Sequence[Sample] | None:
        found = self._journal.find(places) if self._journal is not None else None
        if found is not None:
            self.num_reused += len(found)
            return found
        if self.replay_only:
            raise NothingThereError(
                f"the journal does not hold all rollouts of step {self._step}",
                hint="only steps whose rollouts were kept can be done again: see `yaoki status` for them, "
                "and journal.keep for keeping more",
            )
        self._end_phase("replay")
        return None

    def append(self, rollouts: Sequence[Rollout]) -> None:
        self._end_phase("first_rollout")
        if self._journal is not None:
            self._journal.append(self._step, rollouts)

    def sync(self) -> None:
        """Everything appended is durable."""
        if self._journal is not None:
            self._journal.sync()

    def _end_phase(self, phase: str) -> None:
        if self._phases and self._phases[0] == phase:
            self._on_phase(self._phases.popleft())
