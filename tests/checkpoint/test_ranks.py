"""What any number of ranks has written, any number reads: the same bits, each rank its own rows."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.support.faulty_os import counted_reads
from tests.support.ranks import Failure, on_ranks, outcomes
from tests.support.snapshots import INFO
from yaoki.checkpoint.io import reader
from yaoki.checkpoint.io.reader import load, read_into
from yaoki.checkpoint.io.sharding import local_shard_of
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import FileEntry, Scope
from yaoki.checkpoint.verify import read_checked, read_manifest, verify, whole_chunks
from yaoki.ranks.torch_internals import local_tensor
from yaoki.ranks.world import World

NAME = "step-00000001"
Shapes = dict[str, tuple[int, ...]]
SHAPES: Shapes = {
    "embed": (7, 6),
    "norm": (5,),
    "one_row": (1, 3),
    "empty": (0, 4),
    "deep": (6, 2, 3),
    "wide": (2, 64),
}


LARGE = {f"layer_{i}": (601 + i, 64) for i in range(4)} | {"norm": (64,)}
"""Of many chunks, whose rows no number of ranks divides."""
CHUNK_BYTES = 4096


def whole_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def spread(tensors: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """As FSDP2 does it: rows, the last ranks may have none; and one tensor that is whole everywhere."""
    mesh = init_device_mesh("cpu", (size,))
    found: dict[str, Any] = {n: distribute_tensor(t.clone(), mesh, [Shard(0)]) for n, t in tensors.items()}
    if "embed" in found:
        found["tied"] = found["embed"]
    return found | {"step": torch.tensor(3.0)}


def save(world: World, directory: Path, shapes: Shapes = SHAPES) -> None:
    parts = {
        "p": PartState(Scope.SHARDED, spread(whole_tensors(shapes), world.size)),
        "void": PartState(Scope.SHARDED, spread({"nothing": torch.empty(0, 3)}, world.size)),
        "data": PartState(Scope.GLOBAL, json={"cursor": 5}),
        "rng": PartState(Scope.PER_RANK, {"state": torch.tensor([world.rank])}, json={"rank": world.rank}),
    }
    CheckpointStore(directory, ranks=world.writer).save(Snapshot(parts), step=1, info=INFO)


def restore(world: World, directory: Path, shapes: Shapes = SHAPES) -> dict[str, Any]:
    live = spread({name: torch.full(shape, 9.0) for name, shape in shapes.items()}, world.size)
    live["step"] = torch.tensor(9.0)
    path = directory / NAME
    reads: list[tuple[str, int, int]] = []

    def noted(path: Path, entry: FileEntry, blocks: Any, take: Any, spans: Any) -> None:
        reads.extend((path.name, *span) for span in spans)
        read_checked(path, entry, blocks, take, spans)

    with pytest.MonkeyPatch.context() as patch, counted_reads() as sizes:
        patch.setattr(reader, "read_checked", noted)
        found = read_into(path, read_manifest(path), {"p": live}, ranks=world.loop)
    assert sum(sizes) == sum(end - begin for _, begin, end in reads)
    assert found.parts["data"].json == {"cursor": 5}
    rng = found.parts["rng"]
    gathered = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in live.items()}
    return {
        "tensors": gathered,
        "rng": (rng.json, rng.tensors["state"].tolist()),
        "held_bytes": sum(local_tensor(t).nbytes for n, t in live.items() if n != "tied"),
        "reads": reads,
    }


@pytest.fixture(params=[1, 2, 3, 4])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """(number of ranks that wrote it, directory)."""
    on_ranks(request.param, tmp_path, lambda world: save(world, tmp_path))
    return request.param, tmp_path


def test_any_number_of_ranks_reads_it(written: tuple[int, Path]) -> None:
    num_writers, directory = written
    expected = whole_tensors(SHAPES)
    for size in (1, 2, 3, 4):
        found = on_ranks(size, directory, lambda world: restore(world, directory))
        for rank, of_rank in enumerate(found):
            for name, tensor in expected.items():
                assert torch.equal(of_rank["tensors"][name], tensor), (num_writers, size, rank, name)
            assert of_rank["tensors"]["step"] == 3.0
            source = min(rank, num_writers - 1)
            assert of_rank["rng"] == ({"rank": source}, [source])
        assert_all_is_read(directory / NAME, [one["reads"] for one in found])


def assert_all_is_read(path: Path, by_rank: list[list[tuple[str, int, int]]]) -> None:
    """The ranks together read, and so verify, every byte of every tensor file."""
    for file in read_manifest(path).files:
        if file.name != "state.json":
            spans = sorted(
                (begin, end) for reads in by_rank for name, begin, end in reads if name == file.name
            )
            at = 0
            for begin, end in spans:
                assert begin <= at, file.name
                at = max(at, end)
            assert at == file.size_bytes


@pytest.mark.parametrize("num_writers", [1, 2, 3, 4])
def test_each_rank_reads_only_its_rows(num_writers: int, tmp_path: Path) -> None:
    on_ranks(num_writers, tmp_path, lambda world: save(world, tmp_path, LARGE))
    expected = whole_tensors(LARGE)
    for size in (1, 2, 3, 4):
        found = on_ranks(size, tmp_path, lambda world: restore(world, tmp_path, LARGE))
        assert_all_is_read(tmp_path / NAME, [one["reads"] for one in found])
        for of_rank in found:
            for name, tensor in expected.items():
                assert torch.equal(of_rank["tensors"][name], tensor)
            num_read = sum(end - begin for _, begin, end in of_rank["reads"])
            num_files = len({name for name, *_ in of_rank["reads"]})
            # A header to a file; and where rows begin or end, the rest of that chunk.
            slack = num_files * CHUNK_BYTES * (1 + 2 * len(LARGE))
            assert of_rank["held_bytes"] <= num_read <= of_rank["held_bytes"] + slack, (num_writers, size)


def test_one_process_reads_it_whole(written: tuple[int, Path]) -> None:
    _, directory = written
    verify(directory / NAME)
    found = load(directory / NAME).parts["p"].tensors
    for name, tensor in whole_tensors(SHAPES).items():
        assert torch.equal(found[name], tensor)
    assert found["tied"] is found["embed"]


def test_each_rank_reads_its_own_file_only_if_the_world_is_the_same(tmp_path: Path) -> None:
    on_ranks(3, tmp_path, lambda world: save(world, tmp_path, LARGE))
    files = {file.name: file.size_bytes for file in read_manifest(tmp_path / NAME).files}
    found = on_ranks(3, tmp_path, lambda world: restore(world, tmp_path, LARGE))
    for rank, of_rank in enumerate(found):
        own = [(name, 0, files[name]) for name in files if f"-{rank:05d}-of-" in name]
        reads = set(of_rank["reads"])
        assert reads >= set(own)
        others = reads - set(own)
        # The number that only the first rank has written, and the header before it.
        assert not others if rank == 0 else sum(end - begin for _, begin, end in others) <= 3 * CHUNK_BYTES


@pytest.mark.parametrize("place", [0, 4095, -1], ids=["length", "header", "rows"])
@pytest.mark.parametrize(
    ("part", "bad_rank"), [("void", 0), *((part, rank) for part in ("p", "rng") for rank in range(3))]
)
def test_a_damaged_file_is_refused_by_all(part: str, bad_rank: int, place: int, tmp_path: Path) -> None:
    """Also one that is only a header, and what a third rank had for itself, of which two have no use."""
    on_ranks(3, tmp_path, lambda world: save(world, tmp_path))
    path = tmp_path / NAME / f"{part}-{bad_rank:05d}-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    for size in (2, 3):
        for failure in outcomes(size, tmp_path, lambda world: restore(world, tmp_path)).values():
            assert isinstance(failure, Failure)
            assert "CorruptCheckpointError" in failure.text
            assert path.name in failure.text


@pytest.mark.parametrize("num_readers", [2, 3])
def test_damage_in_any_of_its_rows_is_found_by_each_rank_that_reads_them(
    num_readers: int, tmp_path: Path
) -> None:
    on_ranks(1, tmp_path, lambda world: save(world, tmp_path, LARGE))
    found = on_ranks(num_readers, tmp_path, lambda world: restore(world, tmp_path, LARGE))
    path = tmp_path / NAME / "p-00000-of-00001.safetensors"
    spans = [[span for name, *span in one["reads"] if name == path.name] for one in found]
    assert all(len(of_rank) > 3 for of_rank in spans)
    for begin, end in [place for of_rank in spans for place in (of_rank[1], of_rank[-1])]:
        intact, at = path.read_bytes(), (begin + end) // 2
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        failures = outcomes(num_readers, tmp_path, lambda world: restore(world, tmp_path, LARGE))
        path.write_bytes(intact)
        for rank, failure in failures.items():
            assert isinstance(failure, Failure)
            reads_it = any(first <= at < last for first, last in spans[rank])
            assert (re.search(": worker [0-9]: ", failure.text) is not None) == (not reads_it)
            (place,) = set(re.findall("digest of its bytes ([0-9]+) to ([0-9]+) is", failure.text))
            assert int(place[0]) <= at < int(place[1]) <= int(place[0]) + CHUNK_BYTES


def test_a_rank_that_cannot_write_fails_the_save_on_all(tmp_path: Path) -> None:
    def save_badly(world: World) -> None:
        value: Any = (1, 2) if world.rank == 1 else [1, 2]  # a tuple comes back from JSON as a list
        part = PartState(Scope.PER_RANK, json={"key": value})
        store = CheckpointStore(tmp_path, ranks=world.writer)
        store.save(Snapshot({"rng": part}), step=1, info=INFO)

    failures = outcomes(3, tmp_path, save_badly)
    assert len(failures) == 3
    for rank, failure in failures.items():
        assert isinstance(failure, Failure)
        assert "changes when it is read back from JSON" in failure.text
        assert ("worker 1: " in failure.text) == (rank != 1)
    assert not list(tmp_path.glob("step-*"))


def test_boxes_cover_each_tensor_once(tmp_path: Path) -> None:
    def boxes(world: World) -> dict[str, tuple[int, int]]:
        found = spread(whole_tensors(SHAPES), world.size)
        return {
            name: (local_shard_of(t).first_row, local_shard_of(t).num_rows)
            for name, t in found.items()
            if t.ndim
        }

    for size in (2, 4):
        by_rank = on_ranks(size, tmp_path, boxes)
        for name, shape in SHAPES.items():
            rows = [row for found in by_rank for row in range(found[name][0], sum(found[name]))]
            assert rows == list(range(shape[0]))


@given(
    num_chunks=st.integers(1, 12),
    last_bytes=st.integers(1, CHUNK_BYTES),
    cuts=st.lists(st.integers(0, 12 * CHUNK_BYTES), max_size=12),
)
def test_whole_chunks_are_all_that_is_needed_and_no_more(
    num_chunks: int, last_bytes: int, cuts: list[int]
) -> None:
    size_bytes = (num_chunks - 1) * CHUNK_BYTES + last_bytes
    cuts = sorted({min(cut, size_bytes) for cut in cuts})
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    spans = whole_chunks(FileEntry("file", size_bytes, CHUNK_BYTES, ""), ranges)
    needed = {chunk for begin, end in ranges for chunk in range(begin // CHUNK_BYTES, -(-end // CHUNK_BYTES))}
    given = [chunk for begin, end in spans for chunk in range(begin // CHUNK_BYTES, -(-end // CHUNK_BYTES))]
    assert given == sorted(needed)
    for begin, end in spans:
        assert begin % CHUNK_BYTES == 0
        assert end % CHUNK_BYTES == 0 or end == size_bytes
    assert all(before[1] < after[0] for before, after in pairwise(spans))
