"""What the ranks of a run tell one another while rollouts are collected.

It knows nothing of how rollouts are made or kept.
"""

from collections.abc import Mapping, Sequence

from yaoki.journal.columns import Sample
from yaoki.journal.wire import pack, unpack
from yaoki.learner.world import World
from yaoki.types import Rollout


class RolloutPeers:
    """The ranks among which the micro-batches of a step are dealt out; see `collect`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rank = world.rank
        self.size = world.size

    def any_reason(self, mine: str | None) -> str | None:
        """The reason that some rank gives; all must ask."""
        return self._world.loop.any_reason(mine)

    def exchange(self, rollouts: Sequence[Rollout]) -> Mapping[tuple[int, int], Sample]:
        """What all ranks have sampled, by (index of the prompt, sample); all must give theirs."""
        if self.size == 1:
            return {(r.prompt_index, r.sample): Sample(r.completion, r.verdict) for r in rollouts}
        found: dict[tuple[int, int], Sample] = {}
        for message in self._world.loop.gather(pack(rollouts)):
            found |= unpack(message)
        return found
