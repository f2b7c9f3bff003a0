"""What any number of ranks has written, any number reads: the same bits, each rank its own rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.ranks import Failure, on_ranks, outcomes
from yaoki.checkpoint import reader as reader_module
from yaoki.checkpoint.boxes import box_of, local
from yaoki.checkpoint.manifest import FileEntry, Scope
from yaoki.checkpoint.reader import dealt, load, read_into
from yaoki.checkpoint.snapshot import PartState, Snapshot
from yaoki.checkpoint.store import CheckpointStore
from yaoki.checkpoint.stored_files import TensorFile
from yaoki.checkpoint.verify import read_manifest, verify
from yaoki.learner.world import World

from .samples import INFO

NAME = "step-00000001"
SHAPES = {
    "embed": (7, 6),
    "norm": (5,),
    "one_row": (1, 3),
    "empty": (0, 4),
    "deep": (6, 2, 3),
    "wide": (2, 64),
}


def whole_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def spread(tensors: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """As FSDP2 does it: rows, the last ranks may have none; and one tensor that is whole everywhere."""
    mesh = init_device_mesh("cpu", (size,))
    found: dict[str, Any] = {n: distribute_tensor(t.clone(), mesh, [Shard(0)]) for n, t in tensors.items()}
    found["tied"] = found["embed"]
    return found | {"step": torch.tensor(3.0)}


def save(world: World, directory: Path) -> None:
    parts = {
        "p": PartState(Scope.SHARDED, spread(whole_tensors(), world.size)),
        "data": PartState(Scope.GLOBAL, json={"cursor": 5}),
        "rng": PartState(Scope.PER_RANK, {"state": torch.tensor([world.rank])}, json={"rank": world.rank}),
    }
    CheckpointStore(directory, ranks=world.writer).save(Snapshot(parts), step=1, info=INFO)


def restore(world: World, directory: Path) -> dict[str, Any]:
    live = spread({name: torch.full(shape, 9.0) for name, shape in SHAPES.items()}, world.size)
    live["step"] = torch.tensor(9.0)
    path = directory / NAME
    num_bytes: list[int] = []
    read_rows = reader_module.read_rows
    reader_module.read_rows = lambda *arguments: num_bytes.append(read_rows(*arguments)) or num_bytes[-1]
    found = read_into(path, read_manifest(path), {"p": live}, ranks=world.loop)
    assert found.parts["data"].json == {"cursor": 5}
    rng = found.parts["rng"]
    gathered = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in live.items()}
    return {
        "tensors": gathered,
        "rng": (rng.json, rng.tensors["state"].tolist()),
        "own_bytes": sum(local(t).nbytes for n, t in live.items() if n != "tied"),
        "rows_read_bytes": sum(num_bytes),
    }


@pytest.fixture(params=[1, 2, 3, 4])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """(number of ranks that wrote it, directory)."""
    on_ranks(request.param, tmp_path, lambda world: save(world, tmp_path))
    return request.param, tmp_path


def test_any_number_of_ranks_reads_it(written: tuple[int, Path]) -> None:
    num_writers, directory = written
    expected = whole_tensors()
    for size in (1, 2, 3, 4):
        for rank, found in enumerate(on_ranks(size, directory, lambda world: restore(world, directory))):
            for name, tensor in expected.items():
                assert torch.equal(found["tensors"][name], tensor), (num_writers, size, rank, name)
            assert found["tensors"]["step"] == 3.0
            source = min(rank, num_writers - 1)
            assert found["rng"] == ({"rank": source}, [source])
            # Of files that others verify, no more than what this rank holds.
            assert found["rows_read_bytes"] <= found["own_bytes"] + 8


def test_one_process_reads_it_whole(written: tuple[int, Path]) -> None:
    _, directory = written
    verify(directory / NAME)
    found = load(directory / NAME).parts["p"].tensors
    for name, tensor in whole_tensors().items():
        assert torch.equal(found[name], tensor)
    assert found["tied"] is found["embed"]


def test_each_rank_reads_its_own_file_only_if_the_world_is_the_same(tmp_path: Path) -> None:
    on_ranks(3, tmp_path, lambda world: save(world, tmp_path))
    found = on_ranks(3, tmp_path, lambda world: restore(world, tmp_path))
    assert [one["rows_read_bytes"] for one in found] == [0, 4, 4]  # the number that only rank 0 has written


@pytest.mark.parametrize("bad_rank", [0, 1, 2])
def test_a_damaged_file_is_refused_by_all(bad_rank: int, tmp_path: Path) -> None:
    on_ranks(3, tmp_path, lambda world: save(world, tmp_path))
    path = tmp_path / NAME / f"p-{bad_rank:05d}-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for size in (2, 3):
        for failure in outcomes(size, tmp_path, lambda world: restore(world, tmp_path)).values():
            assert isinstance(failure, Failure)
            assert "CorruptCheckpointError" in failure.text
            assert path.name in failure.text


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
        assert "comes back from JSON as another value" in failure.text
        assert ("worker 1: " in failure.text) == (rank != 1)
    assert not list(tmp_path.glob("step-*"))


def test_boxes_cover_each_tensor_once(tmp_path: Path) -> None:
    def boxes(world: World) -> dict[str, tuple[int, int]]:
        found = spread(whole_tensors(), world.size)
        return {name: (box_of(t).first_row, box_of(t).num_rows) for name, t in found.items() if t.ndim}

    for size in (2, 4):
        by_rank = on_ranks(size, tmp_path, boxes)
        for name, shape in SHAPES.items():
            rows = [row for found in by_rank for row in range(found[name][0], sum(found[name]))]
            assert rows == list(range(shape[0]))


@given(
    sizes=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), min_size=1, max_size=5),
    num_readers=st.integers(1, 12),
)
def test_each_file_is_verified_by_a_rank_that_holds_rows_of_it(
    sizes: list[list[int]], num_readers: int
) -> None:
    num_writers = len(sizes)
    files = [
        TensorFile(Path(f"{rank}-{i}"), FileEntry(f"{i}", size, "0" * 32), "p", rank, False, b"", [])
        for rank, of_rank in enumerate(sizes)
        for i, size in enumerate(of_rank)
    ]
    verifiers = dealt(files, num_writers, num_readers)
    assert verifiers.keys() == {file.path for file in files}
    for file in files:
        reader = verifiers[file.path]
        # Rows lie in [rank / writers, (rank + 1) / writers) of the whole, a reader's likewise.
        assert reader * num_writers < (file.rank + 1) * num_readers
        assert (reader + 1) * num_writers > file.rank * num_readers
        if num_readers == num_writers:
            assert reader == file.rank
    if num_readers % num_writers == 0:  # no reader is idle while another one of its group has two files
        for rank, of_rank in enumerate(sizes):
            own = [verifiers[file.path] for file in files if file.rank == rank]
            assert len(set(own)) == min(len(of_rank), num_readers // num_writers)
