"""The journal of a run: what was synced is found again, what does not belong is quarantined."""

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from yaoki import fs
from yaoki.errors import YaokiError
from yaoki.journal import journal as journal_module
from yaoki.journal import segments
from yaoki.journal.journal import RolloutJournal
from yaoki.journal.layout import SegmentName, parse_segment, segment_names, step_name
from yaoki.types import JudgedCompletion, Prompt, Rollout, RolloutKey

from .samples import KEYS, PROMPTS, STEP, VERSION, batch, journal, same_bits, steps

BATCHES = [KEYS[:3], KEYS[3:6], KEYS[6:]]
"""Micro-batches that cut through groups."""


def directory(run: Path) -> Path:
    return run / "rollouts" / step_name(STEP)


def quarantine(run: Path) -> Path:
    return run / "quarantine" / step_name(STEP)


def segment_files(run: Path) -> list[Path]:
    return [directory(run) / str(name) for name in segment_names(directory(run)) if not name.suffix]


def write(run: Path, *batches: list[Rollout], attempt: int = 1, **options: Any) -> None:
    """An attempt that finishes these micro-batches, each in a segment of its own, and is gone."""
    with journal(run, attempt, **options) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        for rollouts in batches:
            log.append(rollouts)
            log.sync()


def reopened(run: Path, attempt: int = 2, **options: Any) -> tuple[RolloutJournal, list[str]]:
    """The step as a later attempt finds it, and its warnings."""
    said: list[str] = []
    log = journal(run, attempt, warn=said.append, **options)
    log.open_step(STEP, VERSION, PROMPTS)
    return log, [text.removeprefix("quarantined: ") for text in said]


def found(run: Path, attempt: int = 2, **options: Any) -> list[list[JudgedCompletion] | None]:
    """What a later attempt finds of each micro-batch; nothing may be rejected."""
    log, said = reopened(run, attempt, **options)
    with log:
        assert said == []
        return [log.find(keys) for keys in BATCHES]


def samples(keys: list[RolloutKey], **changes: int) -> list[JudgedCompletion]:
    return [rollout.judged for rollout in batch(keys, **changes)]


def test_what_was_synced_is_found_again(tmp_path: Path) -> None:
    write(tmp_path, *map(batch, BATCHES))
    assert found(tmp_path) == [samples(keys) for keys in BATCHES]


def test_only_whole_micro_batches_are_found(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), batch(BATCHES[2]))
    assert found(tmp_path) == [samples(BATCHES[0]), None, samples(BATCHES[2])]
    log, _ = reopened(tmp_path)
    with log:
        assert log.find(KEYS) is None
        assert log.find(KEYS[2:4]) is None
        assert log.find(KEYS[1:3]) == samples(KEYS[1:3])


def test_a_new_step_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]))
    with journal(tmp_path, 2) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        assert log.find(BATCHES[0]) is not None
        log.open_step(STEP + 1, VERSION + 1, PROMPTS)
        assert log.find(BATCHES[0]) is None
    assert not (tmp_path / "rollouts" / step_name(STEP + 1)).exists()


@given(step=steps(), sizes=st.lists(st.integers(1, 3), min_size=6, max_size=6))
@settings(max_examples=25)
def test_any_rollouts_are_found_again(
    tmp_path_factory: pytest.TempPathFactory, step: tuple[list[Prompt], list[Rollout]], sizes: list[int]
) -> None:
    run = tmp_path_factory.mktemp("run")
    prompts, left = step
    with journal(run) as log:
        log.open_step(STEP, VERSION, prompts)
        start = 0
        for size in sizes:
            if start < len(left):
                log.append(left[start : start + size])
            start += size
    said: list[str] = []
    with journal(run, 2, warn=said.append) as log:
        log.open_step(STEP, VERSION, prompts)
        assert said == []
        again = log.find([rollout.key for rollout in left[: sum(sizes)]])
        assert again is not None
        assert all(same_bits(one, other.judged) for one, other in zip(again, left, strict=False))


def test_micro_batches_that_wait_together_share_a_segment(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        for keys in BATCHES:
            log.append(batch(keys))
        log.sync()
        assert len(segment_files(tmp_path)) == 1
        assert log.find(BATCHES[0]) is None  # what this attempt made itself, it has
    assert found(tmp_path) == [samples(keys) for keys in BATCHES]


def test_no_segment_is_too_large_to_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_TOKENS", 12)
    with journal(tmp_path) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        for keys in (KEYS[:2], KEYS[2:4], KEYS[4:6], KEYS[6:]):
            log.append(batch(keys))
        log.sync()
    sizes = [len(segments.read_segment(path).table) for path in segment_files(tmp_path)]
    assert sizes == [4, 4]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_enough_rollouts_are_written_without_being_asked_for(tmp_path: Path) -> None:
    with journal(tmp_path, flush_rollouts=6) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        log.append(batch(BATCHES[0]))
        log.append(batch(BATCHES[1]))
        wait_for(lambda: segment_files(tmp_path))
        assert found(tmp_path, rank=1) == [samples(BATCHES[0]), samples(BATCHES[1]), None]


def test_old_rollouts_are_written_without_being_asked_for(tmp_path: Path) -> None:
    with journal(tmp_path, flush_seconds=0.01) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        for keys in BATCHES[:2]:
            log.append(batch(keys))
            wait_for(lambda keys=keys: found(tmp_path, rank=1)[BATCHES.index(keys)] is not None)


def test_leaving_writes_what_still_waits(tmp_path: Path) -> None:
    log, _ = reopened(tmp_path)
    log.append(batch(BATCHES[0]))
    with pytest.raises(KeyError), log:
        raise KeyError
    assert found(tmp_path)[0] == samples(BATCHES[0])


def test_segments_of_all_ranks_and_attempts_are_read(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), rank=0)
    write(tmp_path, batch(BATCHES[1]), rank=1, attempt=2)
    write(tmp_path, batch(BATCHES[2]), rank=17, attempt=2)
    for rank in (0, 1, 2):
        assert found(tmp_path, attempt=3, rank=rank) == [samples(keys) for keys in BATCHES]


def test_the_number_of_a_segment_is_never_given_again(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), batch(BATCHES[1]))
    write(tmp_path, batch(BATCHES[1], variant=1), attempt=2)  # number 3, and rejected by the next
    for attempt in (3, 4):  # the second time, number 3 is in quarantine only
        log, said = reopened(tmp_path, attempt)
        with log:
            assert len(said) == (attempt == 3)
    write(tmp_path, batch(KEYS[6:7]), attempt=4)
    leftover = directory(tmp_path) / f"rank-000-part-00007-{'0' * 32}.parquet.tmp"
    leftover.write_bytes(b"x")
    write(tmp_path, batch(KEYS[7:8]), attempt=5)
    assert not leftover.exists()
    numbers = [name.number for name in segment_names(directory(tmp_path))]
    assert numbers == [1, 2, 4, 8]
    write(tmp_path, batch(BATCHES[0]), rank=1, attempt=6)
    assert [name.number for name in segment_names(directory(tmp_path)) if name.rank == 1] == [1]


def rejection(run: Path, **options: Any) -> str:
    """The reason why the only segment is quarantined; it is found there, with the reason, as it was."""
    before = {path.name: path.read_bytes() for path in segment_files(run)}
    log, said = reopened(run, **options)
    with log:
        assert [log.find(keys) for keys in BATCHES] == [None] * 3
    assert len(said) == len(before) == 1
    assert segment_files(run) == []
    (name, content), text = before.popitem(), said[0]
    assert text.startswith(str(quarantine(run) / name))
    assert (quarantine(run) / name).read_bytes() == content
    reason = (quarantine(run) / f"{name}.reason.txt").read_text("utf-8")
    assert reason == text.replace("/quarantine/", "/rollouts/") + "\n"
    assert sorted(path.name for path in quarantine(run).iterdir()) == [name, f"{name}.reason.txt"]
    assert found(run, attempt=9) == [None] * 3
    return text.partition(": ")[2]


def test_of_another_run(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), run_id="run-2")
    assert rejection(tmp_path) == "it is of run run-2, not run-1"


def test_of_another_config(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), config_digest="dead")
    assert rejection(tmp_path) == "it is of config digest dead, not c0ffee"


def test_of_another_policy(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.open_step(STEP, VERSION + 1, PROMPTS)
        log.append([replace(r, policy_version=VERSION + 1) for r in batch(BATCHES[0])])
    assert rejection(tmp_path) == f"it is of policy version {VERSION + 1}, not {VERSION}"


def test_of_another_step(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.open_step(STEP + 1, VERSION, PROMPTS)
        log.append([replace(r, key=r.key._replace(step=STEP + 1)) for r in batch(BATCHES[0])])
    (tmp_path / "rollouts" / step_name(STEP + 1)).rename(directory(tmp_path))
    assert rejection(tmp_path) == f"it is of step {STEP + 1}, not {STEP}"


def test_of_other_prompts(tmp_path: Path) -> None:
    write(tmp_path, [replace(r, prompt=replace(r.prompt, token_ids=(1, 2))) for r in batch(BATCHES[0])])
    assert rejection(tmp_path) == "prompt 0 of the step has other token ids"


def test_of_another_task(tmp_path: Path) -> None:
    other = replace(PROMPTS[0], task=replace(PROMPTS[0].task, uid="f" * 16))
    write(tmp_path, [replace(r, prompt=other) for r in batch(KEYS[:2])])
    assert rejection(tmp_path) == f"prompt 0 of the step is of task {'0' * 16}, not {'f' * 16}"


@pytest.mark.parametrize("place", [(4, 0), (-1, 0), (0, -1)])
def test_of_a_place_that_there_is_not(tmp_path: Path, place: tuple[int, int]) -> None:
    write(tmp_path, [replace(batch(KEYS[:1])[0], key=RolloutKey(STEP, *place))])
    assert rejection(tmp_path) == f"there is no prompt {place[0]}, sample {place[1]} among 4 prompts"


def test_with_a_reward_that_is_none(tmp_path: Path) -> None:
    write(tmp_path, batch(KEYS[:1], reward=float("inf")))
    assert rejection(tmp_path) == "a row that no rollout has: a reward is inf"


def test_with_rows_that_are_not_what_the_metadata_says(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        mixed = batch(BATCHES[0])
        mixed[1] = replace(mixed[1], policy_version=VERSION + 1)
        name, data = segments.encode_segment(mixed, segments.JournalIdentity("run-1", "c0ffee", 1), 1)
    fs.make_directory(directory(tmp_path))
    (directory(tmp_path) / str(name)).write_bytes(data)
    assert rejection(tmp_path) == f"a row is not of policy_version {VERSION}, as its metadata says"


def test_of_an_older_format(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]))
    (path,) = segment_files(tmp_path)
    table = pq.read_table(path)
    path.unlink()
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"yaoki.format_version": b"1"}), sink
    )
    data = sink.getvalue().to_pybytes()
    name = SegmentName(0, 1, xxhash.xxh3_128_hexdigest(data))
    (directory(tmp_path) / str(name)).write_bytes(data)
    assert rejection(tmp_path) == "it is of format 1, not 2"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damaged(tmp_path: Path, damage: str) -> None:
    write(tmp_path, batch(BATCHES[0]))
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes({"cut": data[:-1], "flip": data, "empty": b"", "text": b"hello"}[damage])
    assert rejection(tmp_path).startswith("damaged: its ")


def test_not_parquet_in_spite_of_its_name(tmp_path: Path) -> None:
    fs.make_directory(directory(tmp_path))
    name = f"rank-000-part-00001-{xxhash.xxh3_128_hexdigest(b'hello')}.parquet"
    (directory(tmp_path) / name).write_bytes(b"hello")
    assert rejection(tmp_path).startswith("not a readable Parquet file: ")


def test_what_was_quarantined_is_made_again_and_found(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), batch(BATCHES[1]))
    os.truncate(segment_files(tmp_path)[0], 100)
    log, said = reopened(tmp_path)
    with log:
        assert [log.find(keys) for keys in BATCHES] == [None, samples(BATCHES[1]), None]
        log.append(batch(BATCHES[0]))
    assert len(said) == 1
    assert found(tmp_path, attempt=3)[:2] == [samples(keys) for keys in BATCHES[:2]]


def test_the_same_again_is_quarantined_as_a_duplicate(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]))
    (first,) = segment_files(tmp_path)
    name = parse_segment(first.name)
    assert name is not None
    copy = first.with_name(str(replace(name, number=5)))
    copy.write_bytes(first.read_bytes())
    log, said = reopened(tmp_path)
    with log:
        assert log.find(BATCHES[0]) == samples(BATCHES[0])
    assert said == [f"{quarantine(tmp_path) / copy.name}: duplicate: {first.name} holds the same"]
    copy.write_bytes(first.read_bytes())  # and once more: nothing in quarantine is overwritten
    log, said = reopened(tmp_path)
    with log:
        pass
    assert said == [f"{quarantine(tmp_path) / copy.name}.2: duplicate: {first.name} holds the same"]
    assert sum(path.suffix == ".txt" for path in quarantine(tmp_path).iterdir()) == 2


def test_of_two_that_contradict_the_first_attempt_counts(tmp_path: Path) -> None:
    """Whatever their numbers are."""
    write(tmp_path, batch(BATCHES[1]), batch(BATCHES[0], variant=2), attempt=3)
    later = segment_files(tmp_path)[1]
    side = tmp_path / "side"
    write(side, batch(BATCHES[2]), batch(KEYS[2:3]), batch(KEYS[:2]), attempt=2)
    for path in segment_files(side)[1:]:
        path.rename(directory(tmp_path) / path.name)
    log, said = reopened(tmp_path, 4)
    with log:
        assert log.find(BATCHES[0]) == samples(BATCHES[0])
        assert log.find(BATCHES[1]) == samples(BATCHES[1])
    assert len(said) == 1
    assert said[0].startswith(
        f"{quarantine(tmp_path) / later.name}: it holds another completion of prompt 0, "
    )


def test_a_segment_that_holds_more_than_the_one_before_counts_too(tmp_path: Path) -> None:
    """As after half of a micro-batch was quarantined, and all of it was made again."""
    write(tmp_path, batch(BATCHES[0][:2]))
    assert found(tmp_path)[0] is None
    write(tmp_path, batch(BATCHES[0]), attempt=2)
    assert found(tmp_path, attempt=3)[0] == samples(BATCHES[0])


def test_other_files_are_left_alone_and_named(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]))
    (segment,) = segment_files(tmp_path)
    names = sorted(["notes.txt", segment.name + ".bak", "copy of " + segment.name])
    for name in names:
        (directory(tmp_path) / name).write_bytes(segment.read_bytes())
    log, said = reopened(tmp_path)
    with log:
        assert log.find(BATCHES[0]) == samples(BATCHES[0])
    assert said == [
        f"left alone: {directory(tmp_path) / name}: not the name of a segment of the journal"
        for name in names
    ]
    assert sorted(os.listdir(directory(tmp_path))) == sorted([*names, segment.name])


def test_other_ranks_reject_the_same_and_move_nothing(tmp_path: Path) -> None:
    write(tmp_path, batch(BATCHES[0]), batch(BATCHES[1]))
    os.truncate(segment_files(tmp_path)[0], 100)
    unfinished = directory(tmp_path) / f"rank-000-part-00007-{'0' * 32}.parquet.tmp"
    unfinished.write_bytes(b"")  # perhaps rank 0 is writing it now
    before = sorted(os.listdir(directory(tmp_path)))
    assert found(tmp_path, rank=1) == [None, samples(BATCHES[1]), None]
    assert sorted(os.listdir(directory(tmp_path))) == before


class FullDisk:
    """Stands in for `os` in yaoki.fs: nothing more can be written once `is_full`."""

    def __init__(self) -> None:
        self.is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    full = FullDisk()
    monkeypatch.setattr(fs, "os", full)
    return full


FULL = r"could not be journaled: \[Errno 28\] No space left on device: '.*rank-000-part-00002-.*\.tmp'"


def test_a_full_disk_is_raised_by_sync_and_all_that_follows(tmp_path: Path, disk: FullDisk) -> None:
    log, _ = reopened(tmp_path)
    log.append(batch(BATCHES[0]))
    log.sync()
    disk.is_full = True
    log.append(batch(BATCHES[1]))
    with pytest.raises(YaokiError, match=FULL) as caught:
        log.sync()
    assert caught.value.hint
    disk.is_full = False
    with pytest.raises(YaokiError, match=FULL):  # what is lost stays lost
        log.append(batch(BATCHES[2]))
    with pytest.raises(YaokiError, match=FULL):
        log.sync()
    with pytest.raises(YaokiError, match=FULL), log:
        pass
    assert found(tmp_path, attempt=3) == [samples(BATCHES[0]), None, None]
    assert len(os.listdir(directory(tmp_path))) == 1


def append_until_it_fails(log: RolloutJournal) -> None:
    while True:
        log.append(batch(BATCHES[1]))


def test_a_full_disk_is_raised_by_the_next_append(tmp_path: Path, disk: FullDisk) -> None:
    log, _ = reopened(tmp_path, flush_rollouts=1)
    log.append(batch(BATCHES[0]))
    log.sync()
    disk.is_full = True
    log.append(batch(BATCHES[1]))
    with pytest.raises(YaokiError, match=FULL):
        append_until_it_fails(log)
    with pytest.raises(KeyError), log:  # it hides no other error
        raise KeyError
    assert found(tmp_path, attempt=3)[0] == samples(BATCHES[0])


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    fs.make_directory(tmp_path / "rollouts")
    directory(tmp_path).write_bytes(b"")
    with pytest.raises(YaokiError, match="cannot be read: Not a directory") as caught:
        reopened(tmp_path)
    assert caught.value.hint
