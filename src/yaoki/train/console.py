"""Progress on standard error while a run trains: bars for long work, a line per step, sample completions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from yaoki.journal.step_row import StepRow
from yaoki.types import Rollout

_MAX_CHARACTERS = 400
_HEADER = (
    f"{'step':>7}  {'reward':>6}  {'held-out':>8}  {'length':>6}  {'KL':>7}  {'tokens/s':>8}  {'s/step':>6}"
)


class _PatientConsole(RichConsole):
    """Goes quiet on a broken pipe, where rich would end the process: training goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Console:
    """A context manager and a Tracker: shows bars from entering until leaving; on a pipe, only lines."""

    def __init__(
        self,
        show_samples_every: int = 0,
        rich_console: RichConsole | None = None,
        *,
        total_steps: int = 0,
        is_quiet: bool = False,
    ) -> None:
        """
        Args:
            show_samples_every: steps between sample completions; 0 for none.
            total_steps: length of the bar of steps.
            is_quiet: show nothing, for ranks other than 0.
        """
        self._console = rich_console or _PatientConsole(stderr=True, highlight=False, quiet=is_quiet)
        self._show_samples_every = show_samples_every
        self._total_steps = total_steps
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
        """Print an informational line."""
        self._line(Text(text, "dim"))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._line(Text(f"warning: {text}", "yellow"))

    def headline(self, text: str) -> None:
        """Print an emphasised line."""
        self._line(Text(text, "bold"))

    @contextmanager
    def work(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """Show the progress of long work outside of the steps: yields `advance(done, total)`, which draws a
        bar, or on a pipe prints a line every tenth."""
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

    def resume_from(self, step: int) -> None:
        """Show the bar of steps, and the heading of their lines."""
        self._steps = self._bars.add_task("training", total=self._total_steps, completed=step - 1)
        self._phase = self._bars.add_task("", total=1, visible=False)
        self._line(Text(_HEADER, "bold"))

    def generating(self, done: int, total: int) -> None:
        """Show the number of finished rollouts of this step."""
        self._show_phase("generating", done, total)

    def evaluating(self, done: int, total: int) -> None:
        """Show the number of finished held-out completions."""
        self._show_phase("evaluating", done, total)

    def log(self, row: StepRow) -> None:
        """Print the line of one step."""
        kl = row.kl_to_ref if row.kl_to_ref is not None else row.policy_approx_kl
        held_out = f"{row.accuracy:8.3f}" if row.accuracy is not None else " " * 8
        self._line(
            Text(
                f"{row.step:7d}  {row.reward:6.3f}  {held_out}  {row.length:6.1f}  "
                f"{kl if kl is not None else 0.0:7.4f}  {row.timing.tokens_per_s:8.0f}  "
                f"{row.timing.step_s:6.2f}"
            )
        )
        if self._steps is not None:
            self._bars.update(self._steps, completed=row.step)

    def close(self) -> None:
        """No-op: leaving the context removes the bars."""

    def samples(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Print a correct and an incorrect completion, every `show_samples_every` steps."""
        if not self._show_samples_every or (step - 1) % self._show_samples_every:
            return
        right = [r for r in rollouts if r.verdict.is_correct][:1]
        wrong = [r for r in rollouts if not r.verdict.is_correct][:1]
        for rollout in right + wrong:
            is_right = rollout.verdict.is_correct
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
        """Print one line without wrapping, so that logs can be searched."""
        self._bars.console.print(text, soft_wrap=True)

    def _show_phase(self, description: str, done: int, total: int) -> None:
        if self._phase is not None:
            self._bars.update(
                self._phase, description=description, completed=done, total=total, visible=done < total
            )


def _short(text: str) -> str:
    """The beginning of a text, with control characters as escapes: completions are hostile text."""
    shown = text[:_MAX_CHARACTERS]
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return plain if len(text) <= _MAX_CHARACTERS else f"{plain} ..."
