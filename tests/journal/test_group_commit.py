"""Group commit: everything handed over is written, in order, many together; failures come back."""

import threading

import pytest

from yaoki.errors import YaokiError
from yaoki.journal.group_commit import Batch, GroupCommit

from .samples import KEYS, batch

ONE = batch(KEYS[:1])
FOREVER_S = 3600.0


class Writer:
    """Keeps what it is given; waits for `may_write`, and fails where it is told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.groups: list[list[Batch]] = []
        self.failure = failure
        self.is_writing = threading.Event()
        self.may_write = threading.Event()
        self.may_write.set()

    def __call__(self, batches: list[Batch]) -> None:
        self.is_writing.set()
        assert self.may_write.wait(60)
        if self.failure is not None:
            raise self.failure
        self.groups.append(batches)


def numbered(count: int) -> list[Batch]:
    return [batch(KEYS[:1], variant=number) for number in range(count)]


def test_what_waits_is_written_together_and_in_order() -> None:
    writer, batches = Writer(), numbered(20)
    commits = GroupCommit(writer, flush_seconds=FOREVER_S, flush_rollouts=10**9)
    for number, each in enumerate(batches):
        commits.append(each)
        if number in (4, 5, 12):
            commits.sync()
    commits.close()
    assert [len(group) for group in writer.groups] == [5, 1, 7, 7]
    assert [each for group in writer.groups for each in group] == batches
    commits.raise_failure()


def test_appending_does_not_wait_for_the_disk() -> None:
    writer, batches = Writer(), numbered(30)
    writer.may_write.clear()
    commits = GroupCommit(writer, flush_seconds=0.0, flush_rollouts=1)
    commits.append(batches[0])
    assert writer.is_writing.wait(60)
    for each in batches[1:]:
        commits.append(each)
    assert writer.groups == []
    writer.may_write.set()
    commits.sync()
    assert [len(group) for group in writer.groups] == [1, 29]
    commits.close()


def test_syncing_nothing_returns() -> None:
    writer = Writer()
    commits = GroupCommit(writer, flush_seconds=FOREVER_S, flush_rollouts=1)
    commits.sync()
    commits.append(ONE)
    commits.sync()
    commits.sync()
    commits.close()
    assert writer.groups == [[ONE]]


def test_after_a_sync_it_waits_again() -> None:
    writer = Writer()
    commits = GroupCommit(writer, flush_seconds=FOREVER_S, flush_rollouts=3)
    commits.sync()
    commits.append(ONE)
    commits.append(ONE)
    assert not writer.is_writing.wait(0.05)
    commits.append(ONE)
    assert writer.is_writing.wait(60)
    commits.close()
    assert writer.groups == [[ONE] * 3]


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left", "/a/part"), ValueError("odd"), MemoryError()]
)
def test_a_failure_is_raised_with_its_cause(failure: Exception) -> None:
    writer = Writer(failure)
    commits = GroupCommit(writer, flush_seconds=FOREVER_S, flush_rollouts=1)
    commits.append(ONE)
    for call in (commits.sync, lambda: commits.append(ONE), commits.raise_failure):
        with pytest.raises(YaokiError, match="rollouts could not be journaled") as caught:
            call()
        assert caught.value.__cause__ is failure
        assert str(failure) in caught.value.message
    commits.close()
