"""The head of a manifest says what the whole says, or is refused."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.snapshots import INFO, small_snapshot
from yaoki.checkpoint.head import read_head
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import FileEntry
from yaoki.checkpoint.verify import check_sizes, read_manifest
from yaoki.errors import CorruptCheckpointError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path)
    return store.save(small_snapshot(3), step=3, info=INFO).path


def assert_head_is_the_manifests(directory: Path) -> None:
    head, manifest = read_head(directory), read_manifest(directory)
    assert head.size_bytes == manifest.size_bytes
    assert head.parts == tuple(part.name for part in manifest.parts)
    for name in ("created_unix_s", "attempt", "run_id", "parent"):
        assert getattr(head, name) == getattr(manifest, name)


def test_it_says_what_the_manifest_says(directory: Path) -> None:
    assert_head_is_the_manifests(directory)


@pytest.mark.parametrize("num_files", [0, 300, 3000])
def test_a_head_of_any_length(num_files: int, directory: Path) -> None:
    """Thousands of files, names that look like the end of a head."""
    manifest = read_manifest(directory)
    more = tuple(FileEntry(f"extra-{i}", i, 4096, "0" * 32) for i in range(num_files))
    odd = replace(manifest, files=manifest.files + more, run_id='x,"tensors":[', parent=None)
    (directory / "manifest.json").write_bytes(odd.to_bytes())
    assert_head_is_the_manifests(directory)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"\0" * 100_000, b'{"attempt":1,"tensors":[]}', b'{"attempt":1', b'[1,"tensors":['],
    ids=["empty", "no keys", "zeros", "few keys", "cut", "list"],
)
def test_what_is_no_manifest_is_refused(data: bytes, directory: Path) -> None:
    (directory / "manifest.json").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json: not a manifest"):
        read_head(directory)


def test_values_of_another_type_are_refused(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"attempt":2', b'"attempt":[]'))
    with pytest.raises(CorruptCheckpointError, match="not a manifest"):
        read_head(directory)


def test_neither_a_link_nor_a_pipe_is_followed(directory: Path) -> None:
    path = directory / "manifest.json"
    path.rename(directory / "elsewhere")
    with pytest.raises(CorruptCheckpointError, match="missing"):
        read_head(directory)
    path.symlink_to("elsewhere")
    with pytest.raises(CorruptCheckpointError, match="unreadable"):
        read_head(directory)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptCheckpointError, match="not a manifest"):
        read_head(directory)


def test_sizes_are_checked_without_reading(directory: Path) -> None:
    """A changed byte is not seen, a missing one is."""
    path = directory / "state.json"
    data = path.read_bytes()
    path.write_bytes(b"X" + data[1:])
    assert check_sizes(directory) == read_manifest(directory)
    path.write_bytes(data[1:])
    with pytest.raises(CorruptCheckpointError, match=r"state\.json: it has \d+ bytes"):
        check_sizes(directory)
    path.unlink()
    with pytest.raises(CorruptCheckpointError, match=r"state\.json: missing"):
        check_sizes(directory)
