"""Every byte of a committed checkpoint is covered: damage is named, and the previous one is used."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.snapshots import INFO, content, small_snapshot
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.verify import verify
from yaoki.errors import CorruptCheckpointError

FILES = [
    "manifest.json",
    "policy.params-00000-of-00001.safetensors",
    "rng-00000-of-00001.safetensors",
    "state.json",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    for step in (1, 2):
        CheckpointStore(directory).save(small_snapshot(step), step=step, info=INFO)
    return directory


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def assert_falls_back(run: Path, file: str, *reasons: str) -> None:
    """Step 2 is refused because of `file`; step 1 is chosen and loads."""
    with pytest.raises(CorruptCheckpointError) as caught:
        verify(run / "step-00000002")
    assert caught.value.message.startswith(f"{run}/step-00000002/{file}: ")
    choice = Catalog(run).choose()
    assert [refusal.path.name for refusal in choice.refusals] == ["step-00000002"]
    assert choice.refusals[0].reason.startswith(f"{file}: ")
    assert any(reason in choice.refusals[0].reason for reason in reasons)
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == run / "step-00000001"


def flips(size: int) -> Iterator[tuple[int, int]]:
    """(position, mask): length field, header, padding, data, first and last byte, and anything else."""
    randomness = random.Random(size)
    fixed = {0, 1, 7, 8, 9, 100, 4000, 4095, 4096, 4097, size // 2, size - 2, size - 1}
    positions = {position for position in fixed if position < size} | {
        randomness.randrange(size) for _ in range(8)
    }
    for position in sorted(positions):
        yield position, 1 << randomness.randrange(8)


def test_the_sample_has_the_files_that_are_damaged_here(pristine: Path) -> None:
    assert sorted(path.name for path in (pristine / "step-00000002").iterdir()) == FILES
    assert content(load(pristine / "step-00000002").parts) == content(small_snapshot(2).parts)


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_anywhere_is_seen(run: Path, file: str) -> None:
    path = run / "step-00000002" / file
    intact = path.read_bytes()
    for position, mask in flips(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= mask
        path.write_bytes(damaged)
        assert_falls_back(run, file, "digest", "not JSON", "canonical")
    path.write_bytes(intact)
    verify(run / "step-00000002")


def test_every_byte_of_a_tensor_file_is_covered(run: Path) -> None:
    """Each byte of the length, the header and the data, and every 16th of the padding."""
    path = run / "step-00000002" / FILES[1]
    intact = path.read_bytes()
    for position in range(len(intact)):
        if intact[position : position + 1] == b" " and position % 16:
            continue
        with path.open("r+b") as file:
            byte = os.pread(file.fileno(), 1, position)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), position)
            with pytest.raises(CorruptCheckpointError, match="digest"):
                verify(run / "step-00000002")
            os.pwrite(file.fileno(), byte, position)
    verify(run / "step-00000002")


@pytest.mark.parametrize("file", FILES)
def test_every_other_length_is_seen(run: Path, file: str) -> None:
    path = run / "step-00000002" / file
    intact = path.read_bytes()
    shortened = [intact[:length] for length in (0, 1, len(intact) // 2, len(intact) - 1)]
    for damaged in [*shortened, intact + b"\0", intact + b"\n", b"\0" + intact]:
        path.write_bytes(damaged)
        reason = f"it has {len(damaged)} bytes, the manifest says {len(intact)}"
        assert_falls_back(run, file, reason, "not JSON", "own digest")


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove, "missing"),
        (link, "a symbolic link, expected a regular file"),
        (dangling_link, "a symbolic link, expected a regular file"),
        (directory, "a directory, expected a regular file"),
        (pipe, "a special file, expected a regular file"),
    ],
)
def test_a_file_that_is_no_file_is_seen(
    run: Path, file: str, damage: Callable[[Path], None], reason: str
) -> None:
    damage(run / "step-00000002" / file)
    assert_falls_back(run, file, reason)


def test_files_of_another_checkpoint_are_seen(run: Path) -> None:
    for file in FILES:
        shutil.copy(run / "step-00000001" / file, run / "step-00000002" / file)
    assert_falls_back(run, "manifest.json", "it is of step 1, not of step 2")


def test_a_file_that_the_manifest_does_not_list_is_ignored(run: Path) -> None:
    (run / "step-00000002" / "notes.txt").write_text("mine")
    assert verify(run / "step-00000002").step == 2


def test_if_none_is_left_every_reason_is_told_and_the_exit_code_is_4(run: Path) -> None:
    (run / "step-00000001" / "state.json").unlink()
    (run / "step-00000002" / "manifest.json").write_bytes(b"")
    (run / "step-00000003").symlink_to("step-00000002")
    (run / "step-00000004").touch()
    (run / "step-00000005.tmp").mkdir()
    with pytest.raises(CorruptCheckpointError) as caught:
        Catalog(run).choose()
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert caught.value.message.splitlines()[1:] == [
        "  step-00000005.tmp: unfinished: it is being written, or its writer died before the commit",
        "  step-00000004: a regular file, expected a directory",
        "  step-00000003: a symbolic link, expected a directory",
        "  step-00000002: manifest.json: not JSON: EOF while parsing a value at line 1 column 0",
        "  step-00000001: state.json: missing",
    ]


@pytest.mark.parametrize(
    "name", ["step-00000002.tmp", "step-2", "step-00000002.trash", "step-000000002", "x"]
)
def test_a_directory_of_another_name_is_no_checkpoint(run: Path, name: str) -> None:
    (run / "step-00000002").rename(run / name)
    with pytest.raises(CorruptCheckpointError, match="not the name of a committed checkpoint"):
        verify(run / name)
    choice = Catalog(run).choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.manifest.step == 1


def test_a_checkpoint_that_is_gone_is_missing(run: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="step-00000009: missing"):
        verify(run / "step-00000009")
