"""What changed between two checkpoints: real ones, and small ones whose answer is known."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.support.ranks import on_ranks
from tests.support.snapshots import INFO
from yaoki.checkpoint.differences import JsonChange, PartDiff, TensorDiff
from yaoki.checkpoint.io.diff import diff_checkpoints
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.layout import directory_name
from yaoki.checkpoint.manifest import Scope
from yaoki.errors import CorruptCheckpointError
from yaoki.ranks.world import World


def by_part(before: Path, after: Path) -> dict[str, PartDiff]:
    return {entry.part: entry for entry in diff_checkpoints(before, after)}


def test_two_steps_of_a_run(finished: Path) -> None:
    before, after = (finished / "checkpoints" / directory_name(step) for step in (2, 3))
    found = by_part(before, after)
    old, new = load(before).parts, load(after).parts
    assert list(found) == list(old)
    assert found["reference.params"].equal
    assert JsonChange("global_step", 2, 3) in found["progress"].json
    a, b = (
        torch.cat([t.double().flatten() for t in parts["policy.params"].tensors.values()])
        for parts in (old, new)
    )
    changes = found["policy.params"].tensors
    assert not found["policy.params"].equal
    assert changes.num_different > 0
    assert changes.max_abs_difference == pytest.approx((b - a).abs().max().item())
    assert 0 < changes.relative_norm < 1


def test_a_checkpoint_is_equal_to_itself_and_is_not_read(finished: Path, tmp_path: Path) -> None:
    """Of its directory only the manifest is there."""
    path = tmp_path / directory_name(3)
    path.mkdir()
    shutil.copy(finished / "checkpoints" / path.name / "manifest.json", path)
    found = diff_checkpoints(path, path)
    assert all(entry.equal and not entry.json for entry in found)
    assert sum(entry.tensors.num_equal for entry in found) > 0


def saved(directory: Path, step: int, **parts: PartState) -> Path:
    return CheckpointStore(directory).save(Snapshot(parts), step=step, info=INFO).path


def sharded(**tensors: torch.Tensor) -> PartState:
    return PartState(Scope.SHARDED, tensors)


def test_numbers_whose_answer_is_known(tmp_path: Path) -> None:
    same = torch.arange(4.0)
    before = saved(tmp_path, 1, p=sharded(a=torch.tensor([3.0, 4.0]), b=same), q=sharded(z=torch.zeros(0)))
    after = saved(tmp_path, 2, p=sharded(a=torch.tensor([3.0, 4.5]), b=same), q=sharded(z=torch.zeros(0)))
    found = by_part(before, after)
    assert found["q"].equal
    assert found["p"].tensors == TensorDiff(
        num_equal=1,
        num_different=1,
        num_only_before=0,
        num_only_after=0,
        max_abs_difference=0.5,
        relative_norm=pytest.approx(0.5 / math.sqrt(25 + 14)),
    )


def test_bits_count_not_values(tmp_path: Path) -> None:
    """A NaN is itself, and 0.0 is not -0.0."""
    nan, zero, half = torch.tensor([math.nan, 1.0]), torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)
    before = saved(tmp_path, 1, p=sharded(a=nan, b=half), z=sharded(z=zero))
    after = saved(tmp_path, 2, p=sharded(a=nan, b=half + 1), z=sharded(z=-zero))
    found = by_part(before, after)
    assert found["z"].tensors.num_different == 1
    changes = found["p"].tensors
    assert (changes.num_equal, changes.num_different, changes.max_abs_difference) == (1, 1, 1.0)
    assert changes.relative_norm is None, "there is no norm of a NaN"
    infinite = saved(tmp_path, 3, p=sharded(a=torch.tensor([math.inf, 1.0]), b=half), z=sharded(z=zero))
    assert by_part(before, infinite)["p"].tensors.max_abs_difference is None


def test_integers_booleans_and_single_numbers(tmp_path: Path) -> None:
    before = saved(
        tmp_path, 1, p=sharded(i=torch.tensor([1, 2]), m=torch.tensor([True]), n=torch.tensor(1.0))
    )
    after = saved(
        tmp_path, 2, p=sharded(i=torch.tensor([1, 5]), m=torch.tensor([False]), n=torch.tensor(9.0))
    )
    found = by_part(before, after)["p"].tensors
    assert (found.num_different, found.max_abs_difference) == (3, 3.0)


def test_what_only_one_has(tmp_path: Path) -> None:
    a, b, c, d, n = (torch.ones(2) for _ in range(5))
    before = saved(tmp_path, 1, p=sharded(a=a, b=b), old=PartState(Scope.GLOBAL, json=1))
    after = saved(tmp_path, 2, p=sharded(a=torch.ones(3), c=c, d=d), new=sharded(n=n))
    found = by_part(before, after)
    assert found["old"].only_in == "before"
    assert found["new"].only_in == "after"
    changes = found["p"].tensors
    assert (changes.num_different, changes.num_only_before, changes.num_only_after) == (1, 1, 2)
    assert not any(entry.equal for entry in found.values())


def test_json_is_compared_key_by_key(tmp_path: Path) -> None:
    def state(**values: object) -> PartState:
        return PartState(Scope.GLOBAL, json={"same": [1], **values})  # type: ignore[dict-item]

    before = saved(tmp_path, 1, s=state(a={"x": 1, "y": None}, long=list(range(20)), gone=True), e=state())
    after = saved(tmp_path, 2, s=state(a={"x": 2, "y": None}, long=[5, *range(1, 20)]), e=state())
    found = by_part(before, after)
    assert found["e"].equal
    assert found["s"].json == [
        JsonChange("a.x", 1, 2),
        JsonChange("long", "20 values", "20 values"),
        JsonChange("gone", True, None),
    ]


def test_what_has_to_be_read_is_verified(tmp_path: Path) -> None:
    before = saved(tmp_path, 1, p=sharded(a=torch.zeros(2)), q=sharded(b=torch.ones(2)))
    after = saved(tmp_path, 2, p=sharded(a=torch.ones(2)), q=sharded(b=torch.ones(2)))
    for name, is_read in (("q", False), ("p", True)):
        file = next(after.glob(f"{name}-*"))
        data = file.read_bytes()
        file.write_bytes(data[:-1] + b"X")
        if is_read:
            with pytest.raises(CorruptCheckpointError, match=file.name):
                diff_checkpoints(before, after)
        else:
            assert by_part(before, after)["q"].equal, "by its digest, as the manifests say"


def test_checkpoints_of_different_numbers_of_ranks_are_compared(tmp_path: Path) -> None:
    """Rows are gathered first; what a rank has for itself is compared with what the same rank had."""

    def save(world: World, step: int) -> None:
        whole = {"a": torch.arange(14.0).view(7, 2), "b": torch.arange(5.0), "step": torch.tensor(1.0)}
        if step == 2:
            whole["b"][3] += 0.5
        mesh = init_device_mesh("cpu", (world.size,))
        tensors = {
            name: distribute_tensor(tensor, mesh, [Shard(0)]) if tensor.dim() else tensor
            for name, tensor in whole.items()
        }
        own = {"state": torch.tensor([7, world.rank * step])}
        parts = {
            "p": PartState(Scope.SHARDED, tensors),
            "rng": PartState(Scope.PER_RANK, own, json={"python": world.rank}),
            "progress": PartState(Scope.GLOBAL, json={"step": step}),
        }
        CheckpointStore(tmp_path, ranks=world.writer).save(Snapshot(parts), step=step, info=INFO)

    on_ranks(1, tmp_path, lambda world: save(world, 1))
    on_ranks(2, tmp_path, lambda world: save(world, 2))
    on_ranks(2, tmp_path, lambda world: save(world, 3))
    before, after, later = (tmp_path / directory_name(step) for step in (1, 2, 3))
    found = by_part(before, after)
    norm = math.sqrt(sum(x * x for x in range(14)) + sum(x * x for x in range(5)))
    assert found["p"].tensors == TensorDiff(2, 1, 0, 0, 0.5, pytest.approx(0.5 / norm))
    assert found["rng"].tensors == TensorDiff(1, 0, 0, 1, 0.0, 0.0)
    assert found["rng"].json == [JsonChange("rank 1.python", None, 1)]
    assert found["progress"].json == [JsonChange("step", 1, 2)]
    backwards = by_part(after, before)
    assert backwards["p"].tensors.num_different == 1
    assert backwards["rng"].json == [JsonChange("rank 1.python", 1, None)]
    own = by_part(after, later)["rng"].tensors
    assert own == TensorDiff(1, 1, 0, 0, 1.0, pytest.approx(1 / math.sqrt(102)))
