"""The journal of rollouts as the training loop sees it: one step at a time.

What the journal holds of a step is not sampled again; what is sampled is durable before it is trained on.
Knows nothing of files.
"""

from collections import deque
from collections.abc import Callable, Sequence

from yaoki.errors import NothingThereError
from yaoki.journal.rollouts import RolloutJournal, Sample
from yaoki.rollout.collect import Place
from yaoki.run.console import Console
from yaoki.types import Prompt, Rollout


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
