"""Records steps, and holds each step that is done again to what earlier attempts recorded of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from yaoki.errors import DivergenceError
from yaoki.journal.step_row import StepRow
from yaoki.train.console import Console
from yaoki.train.trackers import Tracker


class RecordedSteps:
    """Rows that a resume cut off; of the same step and history the newest counts.

    A row counts only for a step with the same history: the same environments, in the same order, so that
    every bit has to agree.
    """

    def __init__(self, rows: Iterable[StepRow]) -> None:
        self._rows = {(row.step, row.history): row for row in rows}

    def of(self, step: int, history: str) -> StepRow | None:
        """The row of a step with this history after it, if an attempt recorded one."""
        return self._rows.get((step, history))

    def check(self, row: StepRow) -> StepRow | None:
        """The recorded row that `row` agrees with, if there is one.

        Raises:
            DivergenceError: the bits differ; names the first component that does.
        """
        recorded = self.of(row.step, row.history)
        if recorded is None:
            return None
        then, now = recorded.fingerprint, row.fingerprint
        different = [name for name in now if then.get(name) != now[name]]
        if not different:
            return recorded
        raise DivergenceError(
            f"step {row.step} differs from what attempt {recorded.attempt} did: "
            f"first in {different[0]} ({then.get(different[0])} then, {now[different[0]]} now)",
            hint='find out what changed since then; resume.on_divergence="warn" continues regardless',
        )


@dataclass(frozen=True, slots=True)
class StepRecorder:
    """Checks and logs the rows of an attempt."""

    recorded_steps: RecordedSteps
    trackers: Sequence[Tracker]
    """Empty on ranks other than 0."""
    console: Console
    on_divergence: Literal["stop", "warn"]
    replay_only: bool
    """The steps are replayed to restore a checkpoint: a row stays the one that was written when it was
    trained."""

    def recorded(self, step: int, history: str) -> StepRow | None:
        """What an earlier attempt recorded of a step with this history."""
        return self.recorded_steps.of(step, history)

    def record(self, row: StepRow) -> None:
        """Log a row to all trackers. DivergenceError if it contradicts an earlier one, unless that only
        warns."""
        self._check(row)
        earlier = self.recorded(row.step, row.history) if self.replay_only else None
        for tracker in self.trackers:
            tracker.log(row if earlier is None else earlier)

    def _check(self, row: StepRow) -> None:
        try:
            recorded = self.recorded_steps.check(row)
        except DivergenceError as error:
            if self.on_divergence == "stop":
                raise
            self.console.warn(error.message)
            return
        reused = f"step {row.step}: {row.timing.num_reused_rollouts} rollouts from the journal"
        if recorded is not None:
            self.console.note(f"{reused}, came out as in attempt {recorded.attempt}, bit for bit")
        elif row.timing.num_reused_rollouts:
            self.console.note(reused)
