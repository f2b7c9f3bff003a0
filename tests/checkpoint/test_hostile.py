"""Checkpoints that lie, with every digest right: refused before anything big is read or held in memory."""

import contextlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.faulty_os import BLOCK_BYTES, use_small_blocks
from tests.support.snapshots import INFO, small_snapshot
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.chunks import MAX_CHUNK_BYTES, ChunkDigester, chunk_bytes_of, num_chunks
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import verify
from yaoki.errors import CorruptCheckpointError, YaokiError

from .forged import signed

WEIGHTS = "policy.params-00000-of-00001.safetensors"
MEMORY_BYTES = 400 << 20
"""What a refusal may take on top of what the process has."""
MAX_READ_BYTES = 1 << 20
HUGE_BYTES = 10 << 30
EXABYTES = 10 * 10**18

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for memory and bytes read")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint to be forged."""
    return CheckpointStore(tmp_path / "checkpoints").save(small_snapshot(1), step=1, info=INFO).path


def forge_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's content and sign it again."""
    content = json.loads((path / "manifest.json").read_bytes())
    change(content)
    (path / "manifest.json").write_bytes(signed(content))


def entry_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(file for file in content["files"] if file["name"] == name)


def admit(path: Path, name: str) -> None:
    """Make the manifest list the file as it is now."""
    size_bytes = (path / name).stat().st_size
    digests = ChunkDigester(chunk_bytes_of(size_bytes))
    with (path / name).open("rb") as file:
        while block := file.read(8 << 20):
            digests.update(block)

    def change(content: dict[str, Any]) -> None:
        entry_of(content, name).update(size_bytes=size_bytes, chunk_bytes=chunk_bytes_of(size_bytes))
        entry_of(content, name)["xxh3_128"] = digests.hexdigests()

    forge_manifest(path, change)


def refusal(work: Callable[[], object], max_read_bytes: int = MAX_READ_BYTES) -> str:
    """The message of the refusal, from a process that cannot get much memory and counts what it reads."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it was accepted"
        try:
            limit = (
                int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
            )
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            before = bytes_read()
            try:
                work()
            except CorruptCheckpointError as error:
                num_read = bytes_read() - before
                said = f"refused: {error}" if num_read <= max_read_bytes else f"read {num_read} bytes"
            except BaseException as error:  # noqa: BLE001 (the edge of a process)
                said = f"{type(error).__name__}: {error}"
        finally:
            os.write(write_end, said.encode()[:4000])
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert said.startswith("refused: "), said
    return said


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@on_linux
@pytest.mark.parametrize(
    "lie", [-1, 1, HUGE_BYTES, EXABYTES, 2**63, 2**64, 10**300], ids=lambda lie: f"{lie:.3g}"
)
def test_a_size_that_lies_is_refused_before_a_byte_is_read(path: Path, lie: int) -> None:
    def change(content: dict[str, Any]) -> None:
        size_bytes = entry_of(content, WEIGHTS)["size_bytes"] + lie
        entry_of(content, WEIGHTS).update(size_bytes=size_bytes, chunk_bytes=MAX_CHUNK_BYTES)
        num_digests = min(2000, num_chunks(size_bytes, MAX_CHUNK_BYTES))
        entry_of(content, WEIGHTS)["xxh3_128"] = "0" * 32 * num_digests

    forge_manifest(path, change)
    reason = "the manifest says" if lie <= HUGE_BYTES else "has no proper digests"
    assert reason in refusal(lambda: verify(path))


@on_linux
def test_a_file_that_is_far_too_big_is_refused_before_a_byte_is_read(path: Path) -> None:
    os.truncate(path / WEIGHTS, HUGE_BYTES)
    assert f"it has {HUGE_BYTES} bytes" in refusal(lambda: verify(path))


@on_linux
def test_a_manifest_of_ten_gigabytes_is_refused_before_it_is_read(path: Path) -> None:
    os.truncate(path / "manifest.json", HUGE_BYTES)
    refusal(lambda: verify(path))


@on_linux
@pytest.mark.processes
def test_a_state_of_a_gigabyte_is_refused_before_it_is_held_in_memory(path: Path) -> None:
    os.truncate(path / "state.json", 1 << 30)
    admit(path, "state.json")
    refusal(lambda: load(path), max_read_bytes=3 << 30)


def header(entries: object) -> bytes:
    """Padded as the writer does it, so that the size of the file can be right whatever it says."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries, separators=(",", ":")).encode()
    return (4088).to_bytes(8, "little") + text.ljust(4088)


def weights(**changes: Any) -> dict[str, Any]:
    """A header that is right for the sample's policy, except for what is changed."""
    right = {
        "embed.weight": {"dtype": "F32", "shape": [5, 3], "data_offsets": [0, 60]},
        "norm.weight": {"dtype": "BF16", "shape": [3], "data_offsets": [60, 66]},
    }
    entries = {name: entry | changes.get(name.split(".")[0], {}) for name, entry in right.items()}
    return {"__metadata__": {"format": "pt"}, **entries}


def twice(name: str) -> bytes:
    entry = json.dumps({name: weights()[name]}).encode()
    return json.dumps(weights()).encode()[:-1] + b"," + entry[1:]


RIGHT = header(weights())
HEADERS = {
    "of 10 GB": HUGE_BYTES.to_bytes(8, "little") + RIGHT[8:],
    "of 2**64 - 1 bytes": b"\xff" * 8 + RIGHT[8:],
    "longer than the file": (5000).to_bytes(8, "little") + RIGHT[8:],
    "of no bytes": bytes(8) + RIGHT[8:],
    "of zeros": bytes(4096),
    "nested without end": header(b"[" * 4088),
    "not JSON": header(b"{'embed.weight':"),
    "overlapping": header(weights(norm={"data_offsets": [58, 64]})),
    "with a hole": header(weights(norm={"data_offsets": [62, 68]})),
    "beyond the file": header(weights(norm={"data_offsets": [60, 600]})),
    "backwards": header(weights(norm={"data_offsets": [66, 60]})),
    "negative": header(weights(embed={"data_offsets": [-6, 54]})),
    "of a huge shape": header(weights(embed={"shape": [1 << 40, 1 << 40]})),
    "of a shape that overflows": header(weights(embed={"shape": [(1 << 32) + 5, 3 << 32]})),
    "of another dtype": header(weights(embed={"dtype": "I32"})),
    "of an unknown dtype": header(weights(embed={"dtype": "F1024"})),
    "with another name": header({**weights(), "embed": weights()["embed.weight"]}),
    "with a name twice": header(twice("embed.weight")),
}


@on_linux
@pytest.mark.parametrize("kind", HEADERS)
def test_a_tensor_file_whose_header_lies_is_refused(path: Path, kind: str) -> None:
    data = (path / WEIGHTS).read_bytes()
    assert data[:4096] == RIGHT
    (path / WEIGHTS).write_bytes(HEADERS[kind] + data[4096:])
    admit(path, WEIGHTS)
    assert WEIGHTS in refusal(lambda: load(path), max_read_bytes=16 << 20)


def test_a_long_header_that_lies_far_behind_its_beginning_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_blocks(monkeypatch)
    tensors = {f"layer_{i:03d}.weight": torch.full((3,), float(i)) for i in range(400)}
    snapshot = Snapshot({"policy.params": PartState(Scope.SHARDED, tensors)})
    path = CheckpointStore(tmp_path).save(snapshot, step=1, info=INFO).path
    data = (path / WEIGHTS).read_bytes()
    assert data.index(b"layer_399") > 2 * BLOCK_BYTES
    (path / WEIGHTS).write_bytes(data.replace(b"layer_399", b"layer_499"))
    admit(path, WEIGHTS)
    with pytest.raises(CorruptCheckpointError, match="its header does not describe the tensors"):
        load(path)


def test_what_a_rank_has_for_itself_is_in_its_own_file(path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["world_size"] = 2
        for tensor in content["tensors"]:
            tensor["rank"] = None if tensor["rank"] is None else 1

    state = json.loads((path / "state.json").read_bytes())
    (path / "state.json").write_text(json.dumps({**state, "per_rank": state["per_rank"] * 2}))
    admit(path, "state.json")
    forge_manifest(path, change)
    with pytest.raises(CorruptCheckpointError, match=r"rng-.*: torch belongs to rank 1"):
        load(path)


def test_a_listed_file_in_which_no_tensor_lies_is_refused(path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["files"].append(dict(entry_of(content, "state.json"), name="more"))

    shutil.copy(path / "state.json", path / "more")
    forge_manifest(path, change)
    with pytest.raises(CorruptCheckpointError, match="more: no tensor is listed in it"):
        load(path)


@on_linux
@pytest.mark.parametrize("size_bytes", [0, 1, 7, 8, 4095, 4096, 4161, 4163])
def test_a_tensor_file_of_another_size_is_refused_though_the_manifest_admits_it(
    path: Path, size_bytes: int
) -> None:
    os.truncate(path / WEIGHTS, size_bytes)
    admit(path, WEIGHTS)
    assert WEIGHTS in refusal(lambda: load(path), max_read_bytes=16 << 20)


@on_linux
def test_a_manifest_that_claims_a_tensor_of_terabytes_is_refused(path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for tensor in content["tensors"]:
            if tensor["part"] == "policy.params" and tensor["shards"] and len(tensor["global_shape"]) == 1:
                tensor["global_shape"] = tensor["shards"][0]["shape"] = [1 << 44]

    forge_manifest(path, change)
    assert "35184372092988 bytes" in refusal(lambda: load(path))


STATE = b'{"shared":{"progress":%s},"per_rank":[{"rng":{}}]}'


@on_linux
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (STATE % (b"[" * 1_000_000), "not JSON"),
        (STATE % (b"[" * 900 + b"]" * 900 + b"}"), "not JSON"),
        (STATE % b'{"step":1,"step":2}', "occurs twice"),
        (STATE % (b"9" * 5000), "not JSON"),
        (STATE % b"1e999", "not a finite number"),
        (STATE % b'"\xff"', "not JSON"),
        (b"[]", "a `per_rank` entry for each rank"),
        (b'{"shared":{},"per_rank":[]}', "a `per_rank` entry for each rank"),
        (b'{"shared":{},"per_rank":[{}]}', "its parts are not those"),
        (b"", "not JSON"),
    ],
    ids=range(10),
)
def test_a_state_that_is_not_what_was_written_is_refused(path: Path, state: bytes, reason: str) -> None:
    (path / "state.json").write_bytes(state)
    admit(path, "state.json")
    assert reason in refusal(lambda: load(path), max_read_bytes=16 << 20)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "..", ".", "", "a/b", "a\0b", "a\\b", "step\n"]
)
def test_nothing_outside_of_the_checkpoint_is_ever_opened(path: Path, name: str, tmp_path: Path) -> None:
    outside = tmp_path / "checkpoints" / "outside"
    shutil.copy(path / WEIGHTS, outside)

    def change(content: dict[str, Any]) -> None:
        entry_of(content, WEIGHTS)["name"] = name
        for tensor in content["tensors"]:
            for shard in tensor["shards"]:
                shard["file"] = name if shard["file"] == WEIGHTS else shard["file"]

    forge_manifest(path, change)
    opened = []
    watching = True
    sys.addaudithook(
        lambda event, arguments: opened.append(arguments[0]) if watching and event == "open" else None
    )
    with pytest.raises(CorruptCheckpointError, match="is not a plain file name"):
        load(path)
    watching = False
    assert {str(found) for found in opened} == {str(path / "manifest.json")}


def test_odd_things_among_the_checkpoints_are_passed_over(path: Path) -> None:
    directory = path.parent
    os.mkfifo(directory / "step-00000002")
    (directory / "step-00000003").symlink_to("/")
    (directory / "step-00000004").touch()
    (directory / "step-99999999999999999999").mkdir()
    os.mkdir(os.fsencode(directory) + b"/step-\xff")
    (directory / "step-00000005").mkdir()
    os.mkfifo(directory / "step-00000005" / "manifest.json")
    choice = Catalog(directory).choose()
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == path
    assert len(choice.refusals) == 4


@pytest.mark.parametrize("name", ["step-00000002.tmp", "step-00000002.trash"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_what_only_looks_like_a_leftover_is_named_if_it_is_in_the_way(
    path: Path, name: str, kind: str
) -> None:
    odd = path.parent / name
    {"file": odd.touch, "pipe": lambda: os.mkfifo(odd)}[kind]()
    said = name
    try:
        CheckpointStore(path.parent).save(small_snapshot(2), step=2, info=INFO)
    except YaokiError as error:
        said = error.message
    assert name in said
    assert Catalog(path.parent).choose().checkpoint is not None


@pytest.mark.parametrize("name", ["step-00000002.tmp", "step-00000002.trash"])
def test_a_save_never_removes_what_a_link_points_to(path: Path, name: str, tmp_path: Path) -> None:
    precious = tmp_path / "victim" / "precious"
    precious.parent.mkdir()
    precious.touch()
    (path.parent / name).symlink_to(precious.parent)
    with contextlib.suppress(YaokiError):
        CheckpointStore(path.parent).save(small_snapshot(2), step=2, info=INFO)
    assert precious.exists()


def test_prune_never_removes_what_a_link_points_to(path: Path, tmp_path: Path) -> None:
    """Somebody has moved an old checkpoint to another disk and left a link."""
    store = CheckpointStore(path.parent)
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    store.save(small_snapshot(2), step=2, info=INFO)
    store.prune(Policy(keep_last=1))
    assert sorted(child.name for child in moved.iterdir())
