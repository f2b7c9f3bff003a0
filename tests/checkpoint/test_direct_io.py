"""Bytes go to the disk and come back through small aligned blocks, direct or not; none is lost on the way."""

import errno
import fcntl
import os
import tempfile
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faulty_os import (
    BLOCK_BYTES,
    FaultyOs,
    can_be_direct,
    counted_reads,
    is_direct,
    replace_os,
    use_small_blocks,
)
from yaoki import fs
from yaoki.checkpoint import direct_io
from yaoki.checkpoint.chunks import hexdigests_of
from yaoki.checkpoint.direct_io import DiskWriter, new_blocks, reading
from yaoki.checkpoint.manifest import FileEntry

SIZES = [0, 1, 4095, 4096, 4097, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 4095]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


def content(num_bytes: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(num_bytes))


def write(directory: Path, *files: list[bytes]) -> list[FileEntry]:
    """Each file from the pieces that it is given."""
    entries = []
    with DiskWriter(new_blocks(), lambda: None) as disk:
        for number, pieces in enumerate(files):
            stream = disk.begin_file(directory / str(number), 4096)
            for piece in pieces:
                stream.put(piece)
            entries.append(stream.finish(str(number)))
            disk.end_file()
        disk.wait()
    return entries


def read(path: Path) -> bytes:
    return b"".join(read_spans(path, [(0, path.stat().st_size)]))


def read_spans(path: Path, spans: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of each view; they must begin where the last one has ended, or where a span begins."""
    found = []
    expected = [at for begin, end in spans for at in range(begin, end, BLOCK_BYTES)]
    with FileIO(path) as file, reading(file, new_blocks(), spans) as views:
        for begin, view in views:
            assert begin == expected.pop(0)
            found.append(bytes(view))
    assert not expected
    return found


@given(st.lists(st.lists(st.sampled_from(SIZES), max_size=4), max_size=3))
def test_files_hold_what_was_put_in_and_come_back(sizes: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        use_small_blocks(patch)
        files = [[content(size) for size in of_file] for of_file in sizes]
        entries = write(Path(name), *files)
        for entry, pieces in zip(entries, files, strict=True):
            whole = b"".join(pieces)
            assert (Path(name) / entry.name).read_bytes() == whole
            assert read(Path(name) / entry.name) == whole
            assert entry == FileEntry(entry.name, len(whole), 4096, hexdigests_of(whole, 4096))


@pytest.mark.parametrize("size", SIZES)
def test_writes_are_large_aligned_and_direct_up_to_the_odd_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    if not can_be_direct(tmp_path):
        pytest.skip("this file system cannot write past the page cache")
    writes = []

    def recorded(descriptor: int, data: memoryview) -> int:
        writes.append((len(data), is_direct(descriptor)))
        return os.write(descriptor, data)

    replace_os(monkeypatch, write=recorded)
    write(tmp_path, [content(1), content(size)])
    num_whole, rest = divmod(1 + size, BLOCK_BYTES)
    assert writes == [(BLOCK_BYTES, True)] * num_whole + ([(rest, rest % 4096 == 0)] if rest else [])


def refuse_at_open(patch: pytest.MonkeyPatch) -> None:
    control = fcntl.fcntl

    def refusing(descriptor: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct access here")
        return control(descriptor, command, flags)

    patch.setattr(fs.fcntl, "fcntl", refusing)


def refuse_at_write(patch: pytest.MonkeyPatch) -> None:
    """As file systems do that accept the flag and mean it only for some writes."""

    def refusing(descriptor: int, data: memoryview) -> int:
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "no direct access here")
        return os.write(descriptor, data)

    replace_os(patch, write=refusing)


def refuse_later(patch: pytest.MonkeyPatch) -> None:
    num_left = 2

    def refusing(descriptor: int, data: memoryview) -> int:
        nonlocal num_left
        num_left -= is_direct(descriptor)
        if num_left < 0 and is_direct(descriptor):
            raise OSError(errno.EINVAL, "no direct access any more")
        return os.write(descriptor, data)

    replace_os(patch, write=refusing)


def write_short(patch: pytest.MonkeyPatch) -> None:
    replace_os(patch, write=lambda descriptor, data: os.write(descriptor, data[: -(-len(data) // 2)]))


@pytest.mark.parametrize("hinder", [refuse_at_open, refuse_at_write, refuse_later, write_short])
def test_where_direct_writes_are_refused_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hinder
) -> None:
    pieces = [content(size) for size in SIZES]
    with monkeypatch.context() as patch:
        hinder(patch)
        (entry,) = write(tmp_path, pieces)
    assert read(tmp_path / "0") == b"".join(pieces)
    assert entry.xxh3_128 == hexdigests_of(b"".join(pieces), 4096)


def test_an_error_of_plain_writes_is_no_reason_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.EINVAL, "whatever you do")

    replace_os(monkeypatch, write=failing)
    with pytest.raises(OSError, match="whatever you do"):
        write(tmp_path, [content(BLOCK_BYTES)])


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_the_first_error_ends_it_names_the_file_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    num_calls = 0

    def failing(*arguments: object) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise OSError(errno.EIO, "broken", str(tmp_path / "1") if call == "open" else None)
        return int(getattr(os, call)(*arguments) or 0)

    num_open = len(os.listdir("/proc/self/fd"))
    replace_os(monkeypatch, **{call: failing})
    with pytest.raises(OSError, match="broken") as caught:
        write(tmp_path, [content(1)], [content(10 * BLOCK_BYTES)], [content(1)])
    assert caught.value.filename == str(tmp_path / "1")
    assert num_calls == 2
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_writing_ends_when_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    class Unwanted(Exception):
        pass

    num_polls = 0

    def poll() -> None:
        nonlocal num_polls
        num_polls += 1
        if num_polls == 3:
            raise Unwanted

    with pytest.raises(Unwanted), DiskWriter(new_blocks(), poll) as disk:
        disk.begin_file(tmp_path / "0", 4096).put(content(10 * BLOCK_BYTES))
    assert (tmp_path / "0").stat().st_size == 2 * BLOCK_BYTES


def test_reading_asks_the_disk_where_that_is_possible(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(content(3 * BLOCK_BYTES + 1))
    with FileIO(tmp_path / "0") as file, reading(file, new_blocks(), [(0, 3 * BLOCK_BYTES + 1)]) as views:
        next(views)
        assert is_direct(file.fileno()) == can_be_direct(tmp_path)


def test_where_direct_reads_are_refused_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "no direct access here")
        return os.preadv(descriptor, buffers, offset)

    monkeypatch.setattr(direct_io, "os", FaultyOs(preadv=refusing))
    (tmp_path / "0").write_bytes(content(3 * BLOCK_BYTES + 1))
    assert read(tmp_path / "0") == content(3 * BLOCK_BYTES + 1)


def test_reads_that_come_short_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return os.preadv(descriptor, [buffers[0][: -(-len(buffers[0]) // 2)]], offset)

    monkeypatch.setattr(direct_io, "os", FaultyOs(preadv=short))
    (tmp_path / "0").write_bytes(content(3 * BLOCK_BYTES + 1))
    assert read(tmp_path / "0") == content(3 * BLOCK_BYTES + 1)


def test_only_the_spans_are_read(tmp_path: Path) -> None:
    data = content(9 * BLOCK_BYTES + 100)
    (tmp_path / "0").write_bytes(data)
    spans = [(0, 4096), (12288, 12288 + 2 * BLOCK_BYTES + 4096), (9 * BLOCK_BYTES, len(data))]
    with counted_reads() as sizes:
        found = read_spans(tmp_path / "0", spans)
    assert b"".join(found) == b"".join(data[begin:end] for begin, end in spans)
    assert sum(sizes) == sum(end - begin for begin, end in spans)


def test_a_file_that_has_become_shorter_gives_less(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(content(BLOCK_BYTES + 5))
    found = read_spans(tmp_path / "0", [(0, 3 * BLOCK_BYTES)])
    assert [len(view) for view in found] == [BLOCK_BYTES, 5, 0]
