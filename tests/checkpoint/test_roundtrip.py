"""What is saved comes back bit for bit, and other tools can read the files."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support.snapshots import INFO, bits, content, scopes, small_snapshot
from yaoki.checkpoint.io.reader import load, restore_into
from yaoki.checkpoint.io.snapshot import DTYPE_NAMES, PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.io.tensor_file import ALIGNMENT_BYTES
from yaoki.checkpoint.manifest import Scope
from yaoki.errors import RefusedError, YaokiError

SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype with any bits, as a whole tensor or as a view that is not contiguous."""
    dtype = draw(st.sampled_from(list(DTYPE_NAMES)))
    shape = draw(SHAPES)
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    raw = draw(st.binary(min_size=num_bytes, max_size=num_bytes))
    if dtype is torch.bool:
        raw = bytes(byte % 2 for byte in raw)
    flat = torch.tensor(list(raw), dtype=torch.uint8).view(dtype)
    tensor = flat.reshape(shape)
    match draw(st.sampled_from(["whole", "transposed", "strided", "expanded", "parameter"])):
        case "transposed" if tensor.ndim:
            return tensor.movedim(0, -1)
        case "strided" if tensor.ndim:
            return tensor[::2]
        case "expanded":
            return tensor.unsqueeze(0).expand(2, *shape)
        case "parameter" if dtype.is_floating_point:
            return torch.nn.Parameter(tensor)
    return tensor


@st.composite
def parts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Named tensors, some of them tied to others."""
    names = draw(
        st.lists(st.text(max_size=8).filter(lambda text: text != "__metadata__"), unique=True, max_size=6)
    )
    state: dict[str, torch.Tensor] = {}
    for name in names:
        tied = draw(st.booleans()) and state
        state[name] = draw(st.sampled_from(list(state.values()))) if tied else draw(tensors())
    return state


@settings(max_examples=50, deadline=None)
@given(parts())
def test_any_tensors_come_back(state: dict[str, torch.Tensor]) -> None:
    snapshot = Snapshot({"p": PartState(Scope.SHARDED, state)})
    with tempfile.TemporaryDirectory() as directory:
        saved = CheckpointStore(Path(directory)).save(snapshot, step=3, info=INFO)
        loaded = load(saved.path, scopes(snapshot)).parts
        assert content(loaded) == content(snapshot.parts)
        back = loaded["p"].tensors
        for name, original in snapshot.parts["p"].aliases.items():
            assert back[name] is back[original]
        if state:
            assert_plain_safetensors(saved.path / "p-00000-of-00001.safetensors", snapshot.parts["p"])


def assert_plain_safetensors(path: Path, part: PartState) -> None:
    stored = {name: tensor for name, tensor in part.tensors.items() if name not in part.aliases}
    assert {name: bits(tensor) for name, tensor in load_file(path).items()} == {
        name: bits(tensor) for name, tensor in stored.items()
    }
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert header_bytes % ALIGNMENT_BYTES == 0
    assert path.stat().st_size == header_bytes + sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("num_tensors", [1, 40, 41, 42, 43, 44, 45, 400])
def test_data_starts_on_a_boundary_however_long_the_header(tmp_path: Path, num_tensors: int) -> None:
    part = PartState(Scope.GLOBAL, {f"layer.{i:03d}": torch.full((3,), float(i)) for i in range(num_tensors)})
    saved = CheckpointStore(tmp_path).save(Snapshot({"p": part}), step=1, info=INFO)
    assert_plain_safetensors(saved.path / "p-00000-of-00001.safetensors", part)


def test_every_tensor_starts_on_a_multiple_of_its_element_size(tmp_path: Path) -> None:
    part = PartState(Scope.GLOBAL, {name: torch.ones(3, dtype=dtype) for dtype, name in DTYPE_NAMES.items()})
    saved = CheckpointStore(tmp_path).save(Snapshot({"p": part}), step=1, info=INFO)
    for tensor in load_file(saved.path / "p-00000-of-00001.safetensors").values():
        assert tensor.data_ptr() % tensor.element_size() == 0


def test_a_whole_state_comes_back_with_its_place_in_the_run(tmp_path: Path) -> None:
    snapshot = small_snapshot(7)
    saved = CheckpointStore(tmp_path).save(snapshot, step=7, info=INFO)
    assert saved.size_bytes == sum(f.stat().st_size for f in saved.path.iterdir()) - (
        (saved.path / "manifest.json").stat().st_size
    )
    loaded = load(saved.path, scopes(snapshot))
    assert content(loaded.parts) == content(snapshot.parts)
    manifest = loaded.manifest
    assert (manifest.step, manifest.run_id, manifest.attempt, manifest.parent) == (7, "run-7", 2, INFO.parent)
    assert (manifest.config_digest, manifest.dataset_digest) == (INFO.config_digest, INFO.dataset_digest)
    assert manifest.environment == INFO.environment
    head = next(entry for entry in manifest.tensors if entry.name == "lm_head.weight")
    assert (head.alias_of, head.shards) == ("embed.weight", ())
    generator = next(entry for entry in manifest.tensors if entry.part == "rng")
    assert (generator.rank, generator.dtype) == (0, "U8")


def test_only_the_same_view_of_the_same_memory_is_tied(tmp_path: Path) -> None:
    square = torch.arange(9.0).reshape(3, 3)
    state = {
        "square": square,
        "tied": square.detach(),
        "transposed": square.T,
        "as_integers": square.view(torch.int32),
        "row": square[0],
        "next_row": square[1],
        "flat": square.view(9),
        "equal": square.clone(),
        "empty": torch.zeros(0),
        "other_empty": torch.zeros(0),
    }
    part = PartState(Scope.GLOBAL, state)
    assert part.aliases == {"tied": "square"}
    saved = CheckpointStore(tmp_path).save(Snapshot({"p": part}), step=1, info=INFO)
    assert content(load(saved.path).parts) == content({"p": part})


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    first = CheckpointStore(tmp_path / "a").save(small_snapshot(7), step=7, info=INFO).path
    second = CheckpointStore(tmp_path / "b").save(small_snapshot(7), step=7, info=INFO).path
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        if name != "manifest.json":
            assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_snapshot_refers_to_tensors_but_keeps_its_own_json() -> None:
    tensor, json = torch.zeros(2), {"step": 1}
    part = PartState(Scope.GLOBAL, {"t": tensor}, json)
    tensor += 1
    json["step"] = 2
    assert part.tensors["t"] is tensor
    assert part.json == {"step": 1}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64).conj().imag,
    ],
)
def test_tensors_that_cannot_be_saved_are_refused_by_name(tensor: torch.Tensor) -> None:
    with pytest.raises(YaokiError, match=r"'layer\.weight' cannot be saved"):
        PartState(Scope.GLOBAL, {"layer.weight": tensor})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_safetensors_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(YaokiError, match="cannot name a tensor"):
        PartState(Scope.GLOBAL, {name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "a\\b", "a b", "a\n", "\0"])
def test_names_that_lead_out_of_the_directory_are_refused(name: str) -> None:
    with pytest.raises(YaokiError, match="cannot name a part"):
        Snapshot({name: PartState(Scope.GLOBAL)})


def test_missing_left_over_and_rescoped_parts_are_refused(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(small_snapshot(1), step=1, info=INFO).path
    expected = scopes(small_snapshot(1)) | {"critic": Scope.SHARDED, "rng": Scope.GLOBAL}
    del expected["progress"]
    with pytest.raises(RefusedError) as caught:
        load(path, expected)
    assert "lacks critic; it also has progress; it has with another scope rng" in str(caught.value)
    assert set(load(path).parts) == {"policy.params", "rng", "progress"}


def test_restore_copies_in_place_and_keeps_ties() -> None:
    shared = torch.nn.Parameter(torch.zeros(2, 2))
    live = {"a": shared, "b": shared, "n": torch.zeros((), dtype=torch.int64)}
    value = torch.tensor([[1.0, float("nan")], [-0.0, 4.0]])
    restore_into(live, {"a": value, "b": value, "n": torch.tensor(5)})
    assert live["a"] is shared
    assert bits(shared) == bits(value)
    assert live["n"].item() == 5


def test_restore_refuses_all_that_does_not_fit_before_it_touches_anything() -> None:
    live = {
        "same": torch.zeros(2),
        "mine": torch.zeros(1),
        "shape": torch.zeros(2, 3),
        "dtype": torch.zeros(2),
    }
    loaded = {"same": torch.ones(2), "shape": torch.ones(3, 2), "dtype": torch.ones(2).bfloat16()}
    loaded |= {f"old.{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(RefusedError) as caught:
        restore_into(live, loaded)
    assert "1 not in the checkpoint: mine" in str(caught.value)
    assert "5 only in the checkpoint: old.0, old.1, old.2 and 2 more" in str(caught.value)
    assert "shape (live F32[2, 3], saved F32[3, 2]), dtype (live F32[2], saved BF16[2])" in str(caught.value)
    assert not any(tensor.any() for tensor in live.values())


def test_loaded_tensors_do_not_write_through_to_the_files(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(small_snapshot(1), step=1, info=INFO).path
    load(path).parts["policy.params"].tensors["embed.weight"].zero_()
    assert content(load(path).parts) == content(small_snapshot(1).parts)
