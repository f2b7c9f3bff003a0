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
