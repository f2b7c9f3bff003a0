"""What a person sees while a run trains: bars for long work, a line per step, sample completions.

Everything goes to standard error; nothing here feeds back into the run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from yaoki.journal.metrics import Row
from yaoki.types import Rollout

_NUM_SAMPLES = 2
_MAX_CHARACTERS = 400
_HEADER = (
    f"{'step':>7}  {'reward':>6}  {'held-out':>8}  {'length':>6}  {'KL':>7}  {'tokens/s':>8}  {'s/step':>6}"
)


class _PatientConsole(RichConsole):
    """Falls silent when nobody reads any more, where rich would end the process: training goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Console:
    """A context manager: the bars live from entering until leaving. On a pipe there are only lines."""

    def __init__(
        self, show_samples_every: int, rich_console: RichConsole | None = None, *, is_quiet: bool = False
    ) -> None:
        """`is_quiet`: shows nothing; for workers beside the one that has the terminal."""
        self._console = rich_console or _PatientConsole(stderr=True, highlight=False, quiet=is_quiet)
        self._show_samples_every = show_samples_every
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._steps: TaskID | None = None
        self._phase: TaskID | None = None
        self._accuracy: float | None = None

    def __enter__(self) -> "Console":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """A line for the record."""
        self._line(Text(text, "dim"))

    def warn(self, text: str) -> None:
        """Something is not as it should be."""
        self._line(Text(f"warning: {text}", "yellow"))

    def headline(self, text: str) -> None:
        """A line that should be seen."""
        self._line(Text(text, "bold"))

    @contextmanager
    def work(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """Long work outside of the steps: yields `advance(done, total)`, which shows a bar from its first
        call on. On a pipe, a line every tenth instead."""
        bar: TaskID | None = None
        shown = -1

        def advance(done: int, total: int) -> None:
            nonlocal bar, shown
            if bar is None:
                bar = self._bars.add_task(description, total=total)
            self._bars.update(bar, completed=done)
            if not self._console.is_terminal and done * 10 // total > shown:
                shown = done * 10 // total
                self.note(f"{description}: {done}/{total}")

        try:
            yield advance
        finally:
            if bar is not None:
                self._bars.remove_task(bar)

    def start(self, step: int, total: int) -> None:
        """Training begins at `step`."""
        self._steps = self._bars.add_task("training", total=total, completed=step)
        self._phase = self._bars.add_task("", total=1, visible=False)
        self._line(Text(_HEADER, "bold"))

    def generating(self, done: int, total: int) -> None:
        """Rollouts of this step that are there."""
        self._show_phase("generating", done, total)

    def evaluating(self, done: int, total: int) -> None:
        """Held-out completions that are there."""
        self._show_phase("evaluating", done, total)

    def step(self, row: Row) -> None:
        """The line of one step."""
        kl = row["kl_to_ref"] if row["kl_to_ref"] is not None else row.get("policy_approx_kl")
        held_out = f"{row['accuracy']:8.3f}" if row["accuracy"] is not None else " " * 8
        self._line(
            Text(
                f"{row['step']:7d}  {row['reward']:6.3f}  {held_out}  {row['length']:6.1f}  "
                f"{kl if kl is not None else 0.0:7.4f}  {row['timing']['tokens_per_s']:8.0f}  "
                f"{row['timing']['step_s']:6.2f}"
            )
        )
        if self._steps is not None:
            self._bars.update(self._steps, completed=row["step"])

    def samples(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Some completions of this step, when their turn has come: a right and a wrong one if there are."""
        if not self._show_samples_every or (step - 1) % self._show_samples_every:
            return
        right = [r for r in rollouts if r.verdict.reward > 0][:1]
        wrong = [r for r in rollouts if r.verdict.reward <= 0][:1]
        for rollout in (right + wrong)[:_NUM_SAMPLES]:
            is_right = rollout.verdict.reward > 0
            mark = ("right", "green") if is_right else (rollout.verdict.reason.value, "red")
            task, text = rollout.prompt.task, rollout.completion.text
            self._line(
                Text.assemble(
                    f"         {_short(task.problem)} ",
                    ("<think>", "dim"),
                    f"{_short(text)}  ",
                    mark,
                    (f" (answer {_short(task.answer)})", "dim"),
                )
            )

    def _line(self, text: Text) -> None:
        """One line, however long: in a log, nothing is found again that was broken in the middle."""
        self._bars.console.print(text, soft_wrap=True)

    def _show_phase(self, description: str, done: int, total: int) -> None:
        if self._phase is not None:
            self._bars.update(
                self._phase, description=description, completed=done, total=total, visible=done < total
            )


def _short(text: str) -> str:
    """The beginning; newlines, and whatever else could steer a terminal, are spelled out."""
    shown = text[:_MAX_CHARACTERS]
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return plain if len(text) <= _MAX_CHARACTERS else f"{plain} ..."
