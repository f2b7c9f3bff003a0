"""A checkpoint is read once, into live tensors, and believed only as far as its digests go."""

import os
from pathlib import Path

import pytest
import torch

from tests.support.faulty_os import use_small_blocks
from tests.support.snapshots import INFO, bits, content, small_snapshot
from yaoki.checkpoint import verify
from yaoki.checkpoint.io.reader import load, read_into
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Manifest, Scope
from yaoki.checkpoint.verify import read_manifest
from yaoki.errors import CorruptCheckpointError, RefusedError

WEIGHTS = "p-00000-of-00001.safetensors"


def save(directory: Path, tensors: dict[str, torch.Tensor], **more: PartState) -> tuple[Path, Manifest]:
    snapshot = Snapshot({"p": PartState(Scope.SHARDED, tensors), **more})
    path = CheckpointStore(directory).save(snapshot, step=1, info=INFO).path
    return path, read_manifest(path)


def every_kind() -> dict[str, torch.Tensor]:
    """Larger than a block, smaller than one, without dimensions, without elements, tied, of all widths."""
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(100, 300, generator=generator)
    return {
        "large": large,
        "tied": large,
        "half": torch.randn(333, generator=generator).bfloat16(),
        "eighth": torch.randn(7, 3, generator=generator).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(7.0),
        "step": torch.tensor(2**40 + 1),
        "none": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
    }


def empty_like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    live = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    if "tied" in live:
        live["tied"] = live["large"]
    return live


def test_everything_comes_back_into_the_very_tensors_that_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = save(tmp_path, every_kind())
    live = empty_like(every_kind())
    use_small_blocks(monkeypatch)
    loaded = read_into(path, manifest, {"p": live})
    for name, tensor in every_kind().items():
        assert loaded.parts["p"].tensors[name] is live[name]
        assert bits(live[name]) == bits(tensor), name


def test_live_tensors_need_not_be_contiguous(tmp_path: Path) -> None:
    path, manifest = save(tmp_path, {"w": torch.arange(12.0).reshape(3, 4)})
    memory = torch.zeros(4, 6)
    read_into(path, manifest, {"p": {"w": memory.T[::2]}})
    assert torch.equal(memory[:, ::2], torch.arange(12.0).reshape(3, 4).T)
    assert not memory[:, 1::2].any()


def test_parameters_are_restored_in_place(tmp_path: Path) -> None:
    path, manifest = save(tmp_path, {"w": torch.ones(3)})
    parameter = torch.nn.Parameter(torch.zeros(3))
    read_into(path, manifest, {"p": {"w": parameter}})
    assert parameter.requires_grad
    assert parameter.tolist() == [1, 1, 1]


def test_parts_that_nobody_gave_tensors_for_come_in_new_ones(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(small_snapshot(3), step=3, info=INFO).path
    live = {"torch": torch.zeros_like(small_snapshot(3).parts["rng"].tensors["torch"])}
    loaded = read_into(path, read_manifest(path), {"rng": live})
    assert content(loaded.parts) == content(small_snapshot(3).parts)
    policy = loaded.parts["policy.params"].tensors
    assert policy["lm_head.weight"] is policy["embed.weight"]


def test_only_the_wanted_parts_are_read(tmp_path: Path) -> None:
    path, _ = save(tmp_path, {"w": torch.ones(3)}, q=PartState(Scope.SHARDED, {"w": torch.ones(3)}))
    (path / "q-00000-of-00001.safetensors").unlink()
    assert set(load(path, only=["p"]).parts) == {"p"}
    with pytest.raises(CorruptCheckpointError, match=r"q-00000-of-00001\.safetensors: missing"):
        load(path)


def test_tied_then_and_apart_now_is_filled_twice(tmp_path: Path) -> None:
    path, manifest = save(tmp_path, every_kind())
    live = empty_like(every_kind()) | {"tied": torch.zeros(100, 300)}
    read_into(path, manifest, {"p": live})
    assert torch.equal(live["tied"], live["large"])
    assert live["large"].any()


def test_apart_then_and_tied_now_is_refused(tmp_path: Path) -> None:
    path, manifest = save(tmp_path, {"a": torch.ones(3), "b": torch.zeros(3)})
    shared = torch.full((3,), 5.0)
    with pytest.raises(RefusedError, match="1 tied now, but not when saved: b and a"):
        read_into(path, manifest, {"p": {"a": shared, "b": shared}})
    assert shared.tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scalar": None}, "1 only in the checkpoint: scalar"),
        ({"more": torch.zeros(1)}, "1 not in the checkpoint: more"),
        ({"large": torch.zeros(300, 100), "tied": None}, "live F32\\[300, 100\\], saved F32\\[100, 300\\]"),
        ({"half": torch.zeros(333)}, "live F32\\[333\\], saved BF16\\[333\\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_touched(tmp_path: Path, change, reason: str) -> None:
    path, manifest = save(tmp_path, every_kind(), q=PartState(Scope.SHARDED, {"w": torch.ones(3)}))
    live = {n: t for n, t in (empty_like(every_kind()) | change).items() if t is not None}
    first = {"w": torch.zeros(3)}
    with pytest.raises(RefusedError, match=reason):
        read_into(path, manifest, {"q": first, "p": live})
    assert not any(tensor.any() for tensor in (*live.values(), *first.values()))


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, manifest = save(tmp_path, every_kind())
    use_small_blocks(monkeypatch)
    intact = (path / WEIGHTS).read_bytes()
    for position in (0, 8, 100, 4095, 4096, 20000, len(intact) - 1):
        damaged = bytearray(intact)
        damaged[position] ^= 16
        (path / WEIGHTS).write_bytes(damaged)
        with pytest.raises(CorruptCheckpointError, match=f"{WEIGHTS}: (its header|the xxh3-128 digest)"):
            read_into(path, manifest, {"p": empty_like(every_kind())})
    (path / WEIGHTS).write_bytes(intact)
    read_into(path, manifest, {"p": empty_like(every_kind())})


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: os.truncate(p, 5000), lambda p: os.truncate(p, 10**6)]
)
def test_a_file_of_another_size_is_refused_before_anything_is_touched(tmp_path: Path, damage) -> None:
    path, manifest = save(tmp_path, every_kind(), q=PartState(Scope.SHARDED, {"w": torch.ones(3)}))
    damage(path / "q-00000-of-00001.safetensors")
    live = empty_like(every_kind())
    with pytest.raises(CorruptCheckpointError, match=r"q-00000-of-00001\.safetensors: (missing|it has)"):
        read_into(path, manifest, {"p": live})
    assert not live["large"].any()


def test_what_is_restored_is_what_was_digested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is opened for reading once: there is no second reading that could differ from the first."""
    path, manifest = save(tmp_path, every_kind())
    opened: list[str] = []
    reading = verify.reading

    def recorded(file, blocks, spans):
        opened.append(Path(file.name).name)
        return reading(file, blocks, spans)

    monkeypatch.setattr(verify, "reading", recorded)
    read_into(path, manifest, {"p": empty_like(every_kind())})
    assert opened == [WEIGHTS]


def test_damaged_json_is_noticed_before_tensors_are_touched(tmp_path: Path) -> None:
    path, manifest = save(tmp_path, every_kind())
    (path / "state.json").write_bytes((path / "state.json").read_bytes().replace(b" ", b"\t", 1))
    live = empty_like(every_kind())
    with pytest.raises(CorruptCheckpointError, match=r"state\.json: the xxh3-128 digest of its bytes 0 to"):
        read_into(path, manifest, {"p": live})
    assert not live["large"].any()
