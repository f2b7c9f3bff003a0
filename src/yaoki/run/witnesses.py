"""What earlier attempts recorded of steps that are done again: a step has to come out as its witness says.

A witness counts only for a step with the same history: the same environments, in the same order, so that
every bit has to agree. Knows nothing of how a step is done.
"""

from collections.abc import Iterable

from yaoki.errors import DivergenceError
from yaoki.journal.metrics import Row


class Witnesses:
    """Rows that a resume cut off; of the same step and history the newest counts."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row["step"], row["history"]): row for row in rows}

    def of(self, step: int, history: str) -> Row | None:
        """The row of a step with this history after it, if an attempt has come that far."""
        return self._rows.get((step, history))

    def check(self, row: Row) -> Row | None:
        """The witness that `row` agrees with, if there is one.

        Raises:
            DivergenceError: the bits differ; names the first component that does.
        """
        witness = self.of(row["step"], row["history"])
        if witness is None:
            return None
        then, now = witness["fingerprint"], row["fingerprint"]
        different = [name for name in now if then.get(name) != now[name]]
        if not different:
            return witness
        raise DivergenceError(
            f"step {row['step']} differs from what attempt {witness['attempt']} did: "
            f"first in {different[0]} ({then.get(different[0])} then, {now[different[0]]} now)",
            hint='look for what changed since; resume.on_divergence="warn" goes on regardless',
        )
