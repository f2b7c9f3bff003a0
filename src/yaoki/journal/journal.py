"""The write-ahead log of rollouts: durable before they are trained on, and found again by a resume.

rollouts/step-00000124/rank-000-part-00007-<digest>.parquet     see segments.py
quarantine/step-00000124/...                                    segments that could not be used, and why
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from yaoki import fs
from yaoki.errors import NothingThereError
from yaoki.journal.group_commit import Batch, GroupCommit
from yaoki.journal.layout import UNFINISHED_SUFFIX, names_in, parse_segment, segment_names, step_name
from yaoki.journal.recovery import StepContents, quarantine, read_step_for
from yaoki.journal.retention import prune_steps
from yaoki.journal.segments import JournalIdentity, encode_segment
from yaoki.types import JudgedCompletion, Prompt, Rollout, RolloutKey

_MAX_SEGMENT_TOKENS = 1 << 22
"""A segment ends with the micro-batch that reaches this, so that no segment is too large to be read back."""


class RolloutJournal:
    """The journal of one rank of a run, one step at a time. A context manager: a background thread writes.

    Leaving the block writes what is still pending. A failure to do so is raised, unless another error is
    already being raised; call `sync` first where it matters.
    """

    def __init__(
        self,
        directory: Path,
        identity: JournalIdentity,
        *,
        flush_seconds: float,
        flush_rollouts: int,
        num_ranks: int = 1,
        replay_only: bool = False,
        warn: Callable[[str], None] = lambda _: None,
        on_append: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            directory: the run's `rollouts/`.
            flush_seconds: longest time that a finished rollout is pending before it is written.
            flush_rollouts: number of pending rollouts that are written at once.
            replay_only: a rollout that is not in the journal is an error, and not sampled.
            warn: receives a message for each file that was quarantined or is not a segment.
            on_append: called with each finished micro-batch, which is durable soon after.
        """
        self._directory = directory
        self._num_ranks = num_ranks
        self._identity = identity
        self._warn = warn
        self._on_append = on_append
        self._commits = GroupCommit(self._write, flush_seconds=flush_seconds, flush_rollouts=flush_rollouts)
        self._step = 0
        self._policy_version = 0
        self._next_number = 0
        self._contents = StepContents()
        self._replay_only = replay_only
        self.num_reused = 0
        """Rollouts of the open step that were found."""

    def __enter__(self) -> "RolloutJournal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._commits.close()
        if error is None:
            self._commits.raise_failure()

    def open_step(
        self,
        step: int,
        policy_version: int,
        prompts: Sequence[Prompt],
        barrier: Callable[[], None] = lambda: None,
    ) -> None:
        """Switch to a step: read its segments, of all ranks and attempts, and quarantine unusable ones.

        `barrier` returns when all ranks have read, so that all have found the same. Unfinished segments of
        dead attempts are removed. Raises YaokiError if a file cannot be read.
        """
        self.sync()
        self._step, self._policy_version, self.num_reused = step, policy_version, 0
        directory = self._directory / step_name(step)
        quarantined = self._directory.parent / "quarantine" / step_name(step)
        # fsync first: a killed writer may have renamed files without syncing the directory. The target of a
        # move comes before its source.
        for place in (quarantined, directory):
            if place.is_dir():
                fs.fsync_directory(place)
        self._contents = read_step_for(directory, self._identity, step, policy_version, prompts)
        barrier()
        if self._identity.rank == 0:  # every rank rejects the same segments
            for rejected in self._contents.rejected:
                self._warn(f"quarantined: {quarantine(rejected, quarantined)}: {rejected.reason}")
            for path in _other_files(directory):
                self._warn(f"left alone: {path}: not the name of a segment of the journal")
        self._next_number = self._clean_and_number(directory, quarantined)

    def find(self, keys: Sequence[RolloutKey]) -> list[JudgedCompletion] | None:
        """One micro-batch of the open step, as it was in the journal when the step was opened.

        None unless all of it is there: half a micro-batch is never reused.
        """
        found = self._contents.find(keys)
        if found is not None:
            self.num_reused += len(found)
        elif self._replay_only:
            raise NothingThereError(
                f"the journal does not hold all rollouts of step {self._step}",
                hint="only steps whose rollouts were kept can be replayed: see `yaoki status` for them, and "
                "journal.keep for keeping more",
            )
        return found

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Append a finished micro-batch of the open step; durable after `sync`, or a little later.

        Raises YaokiError if earlier ones could not be written.
        """
        assert all(rollout.key.step == self._step for rollout in rollouts)
        assert all(rollout.policy_version == self._policy_version for rollout in rollouts)
        self._commits.append(rollouts)
        self._on_append()

    def sync(self) -> None:
        """Block until everything appended is durable; YaokiError if it cannot be made durable."""
        self._commits.sync()

    def prune(self, oldest_checkpoint_step: int, keep: str) -> list[Path]:
        """Remove the steps up to that of the oldest retained checkpoint, except those that `keep` retains.

        `keep` is journal.keep. Returns the removed directories. Any thread may call this.
        """
        return prune_steps(self._directory, oldest_checkpoint_step, keep)

    def _write(self, batches: list[Batch]) -> None:
        """In the background: make the batches durable, in as few segments as possible."""
        directory = self._directory / step_name(self._step)
        fs.make_directory(directory)
        for rollouts in _groups(batches):
            name, data = encode_segment(rollouts, self._identity, self._next_number)
            self._next_number += 1
            fs.publish(directory / str(name), memoryview(data))

    def _clean_and_number(self, directory: Path, quarantined: Path) -> int:
        """Remove unfinished segments of this rank, and on rank 0 those of ranks that no longer exist.

        Returns an unused number.
        """
        numbers = [0]
        for place in (directory, quarantined):
            for name in segment_names(place):
                is_ours = name.rank == self._identity.rank
                if not is_ours and not (self._identity.rank == 0 and name.rank >= self._num_ranks):
                    continue
                numbers.append(name.number)
                if place == directory and name.suffix == UNFINISHED_SUFFIX:
                    fs.remove_file(place / str(name))
        return max(numbers) + 1


def _other_files(directory: Path) -> Iterator[Path]:
    """Files in a step's directory that are neither segments nor unfinished ones."""
    for name in names_in(directory):
        segment = parse_segment(name)
        if segment is None or segment.suffix not in ("", UNFINISHED_SUFFIX):
            yield directory / name


def _groups(batches: Sequence[Batch]) -> Iterator[list[Rollout]]:
    """Whole micro-batches together, as many as fit into one segment."""
    group: list[Rollout] = []
    num_tokens = 0
    for batch in batches:
        group += batch
        num_tokens += sum(len(rollout.completion.token_ids) for rollout in batch)
        if num_tokens >= _MAX_SEGMENT_TOKENS:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


class NullJournal:
    """The journal with journal.enabled=false: stores nothing and finds nothing."""

    num_reused = 0

    def open_step(
        self, step: int, policy_version: int, prompts: Sequence[Prompt], barrier: Callable[[], None]
    ) -> None:
        pass

    def find(self, keys: Sequence[RolloutKey]) -> None:
        pass

    def append(self, rollouts: Sequence[Rollout]) -> None:
        pass

    def sync(self) -> None:
        pass

    def prune(self, oldest_checkpoint_step: int, keep: str) -> None:
        pass
