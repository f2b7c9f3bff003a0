"""Whatever the tensors become after `release`: what is read is what they were when the window was open."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.snapshots import INFO, bits
from yaoki.checkpoint.direct_io import Digester
from yaoki.checkpoint.io import frozen as source_module
from yaoki.checkpoint.io.frozen import FrozenTensors, pieces_of
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Scope
from yaoki.errors import YaokiError


def reader(taken: list[bytes], room_bytes: int = 16) -> Digester:
    block = memoryview(bytearray(room_bytes))
    return Digester(lambda: block, lambda block, num_bytes: taken.append(bytes(block[:num_bytes])), 4096)


def read_all(source: FrozenTensors, *groups: str) -> bytes:
    taken: list[bytes] = []
    digester = reader(taken)
    for group in groups:
        source.take(group, digester)
    digester.finish("")
    source.close()
    return b"".join(taken)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def numbers(*sizes: int) -> list[torch.Tensor]:
    return [torch.arange(size, dtype=torch.int64) * 3 + size for size in sizes]


def bytes_of(*tensors: torch.Tensor) -> bytes:
    return b"".join(bits(tensor)[2] for tensor in tensors)


def test_all_bytes_come_in_order_whatever_the_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    source, tensors = FrozenTensors(), numbers(1, 5, 0, 100)
    source.begin({"a": tensors[:2], "b": tensors[2:]})
    assert read_all(source, "a", "b") == bytes_of(*tensors)


def test_what_is_read_can_be_read_again_until_it_is_forgotten() -> None:
    source, (tensor,) = FrozenTensors(), numbers(9)
    source.begin({"a": [tensor]})
    taken: list[bytes] = []
    digester = reader(taken)
    source.read("a", digester)
    source.take("a", digester)
    digester.finish("")
    assert b"".join(taken) == 2 * bytes_of(tensor)
    source.close()
    assert source.release(0)


@pytest.mark.parametrize("num_read", [0, 1, 2])
def test_copied_on_release_the_rest_may_change(num_read: int) -> None:
    source, tensors = FrozenTensors(), [*numbers(7, 30), torch.eye(5)[:, ::2], torch.ones(()).expand(3, 2)]
    before = bytes_of(*tensors)
    source.begin({str(i): [tensor] for i, tensor in enumerate(tensors)})
    taken: list[bytes] = []
    digester = reader(taken)
    for group in range(num_read):
        source.take(str(group), digester)
    assert source.release(10**9)
    for tensor in (*tensors[:2], torch.ones(())):
        tensor.fill_(-1)
    tensors[2].fill_(-1)
    for group in range(num_read, len(tensors)):
        source.take(str(group), digester)
    digester.finish("")
    assert b"".join(taken) == before


def test_release_waits_until_all_is_read_if_nothing_may_be_copied() -> None:
    source, (tensor,) = FrozenTensors(), numbers(100)
    before = bytes_of(tensor)
    released = threading.Event()

    def train() -> None:
        assert source.release(0)
        released.set()
        tensor.fill_(-1)

    training = in_thread(train)
    source.begin({"a": [tensor]})
    assert not released.wait(0.05)
    assert read_all(source, "a") == before
    training.join(60)
    assert released.is_set()


def test_release_copies_only_what_may_be_copied_and_waits_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, tensors = FrozenTensors(), numbers(100, 10, 20)
    before = bytes_of(*tensors)
    copied: list[int] = []
    copy = source_module._copy_of
    monkeypatch.setattr(
        source_module, "_copy_of", lambda piece: (copied.append(piece.nbytes), copy(piece))[1]
    )
    released = threading.Event()

    def train() -> None:
        assert source.release(8 * 35)
        released.set()
        for tensor in tensors:
            tensor.fill_(-1)

    source.begin({str(i): [tensor] for i, tensor in enumerate(tensors)})
    training = in_thread(train)
    assert not released.wait(0.05)
    taken: list[bytes] = []
    digester = reader(taken)
    source.take("0", digester)
    training.join(60)
    assert sum(copied) == 8 * 30
    source.take("1", digester)
    source.take("2", digester)
    digester.finish("")
    assert b"".join(taken) == before


def test_released_once_nothing_is_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source, (tensor,) = FrozenTensors(), numbers(4)
    before = bytes_of(tensor)
    source.begin({"a": [tensor]})
    assert source.release(100)
    tensor.fill_(-1)
    monkeypatch.setattr(source_module, "_copy_of", lambda piece: pytest.fail("copied again"))
    assert source.release(100)
    assert read_all(source, "a") == before


@pytest.mark.parametrize("has_begun", [False, True])
def test_release_says_that_reading_was_given_up(has_begun: bool) -> None:
    source, tensors = FrozenTensors(), numbers(4)
    if has_begun:
        source.begin({"a": tensors})
    source.close()
    assert not source.release(0)
    assert not source.release(10**9)


def test_a_state_without_tensors_is_read_at_once() -> None:
    source = FrozenTensors()
    source.begin({})
    assert source.release(0)
    source.close()
    assert source.release(0)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(60).reshape(3, 4, 5).movedim(0, -1),
        torch.arange(60)[::2],
        torch.arange(4).expand(9, 4),
        torch.arange(60).reshape(1, 60)[:, ::3],
        torch.arange(120).reshape(2, 60).T,
        torch.tensor(3).expand(2, 1, 30),
    ],
)
def test_a_tensor_that_is_not_contiguous_is_copied_in_small_pieces(
    monkeypatch: pytest.MonkeyPatch, tensor: torch.Tensor
) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 64)
    pieces = list(pieces_of(tensor))
    assert bytes_of(*pieces) == bytes_of(tensor)
    assert max(piece.nbytes for piece in pieces) <= 64
    assert len(list(pieces_of(tensor.contiguous()))) == 1


WRITES: dict[str, Callable[[torch.nn.Parameter], object]] = {
    "an optimizer": lambda weight: torch.optim.SGD([weight], lr=1.0).step(),
    "a weight sync": lambda weight: weight.detach().copy_(torch.ones_like(weight)),
    "an average": lambda weight: weight.detach().lerp_(torch.ones_like(weight), 0.1),
    "one element": lambda weight: weight.detach().view(10, 100)[3].zero_(),
    "a reload": lambda weight: torch.nn.ParameterList([weight]).load_state_dict(
        {"0": torch.ones_like(weight)}
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_inside_the_window_is_noticed(write: str, tmp_path: Path) -> None:
    """Whatever writes, by whatever view: the checkpoint is given up, not committed with half of it."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    weight.grad = torch.ones_like(weight)
    part = PartState(Scope.SHARDED, {"other": torch.ones(3), "weight": weight.detach()})
    WRITES[write](weight)
    with pytest.raises(YaokiError, match=r"policy\.params: weight: a tensor was written to") as caught:
        CheckpointStore(tmp_path).save(Snapshot({"policy.params": part}), step=1, info=INFO)
    assert "release" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_moving_weights_away_does_no_harm(tmp_path: Path) -> None:
    """Offloaded and reloaded, or replaced: the snapshot holds on to the memory of its own instant."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    snapshot = Snapshot({"policy.params": PartState(Scope.SHARDED, {"weight": weight.detach()})})
    weight.data = torch.ones(1000)
    weight.data.add_(1)
    saved = CheckpointStore(tmp_path).save(snapshot, step=1, info=INFO)
    assert load(saved.path).parts["policy.params"].tensors["weight"].eq(0).all()


def test_a_write_while_it_is_read_is_noticed() -> None:
    source, (tensor,) = FrozenTensors(), numbers(9)
    source.begin({"file": [tensor]})
    digester = reader([])
    source.read("file", digester)
    tensor.add_(1)
    with pytest.raises(YaokiError, match="file: a tensor was written to"):
        source.take("file", digester)
    source.close()


def test_after_the_release_tensors_may_be_written_to() -> None:
    source, (tensor,) = FrozenTensors(), numbers(9)
    source.begin({"file": [tensor]})
    before = bytes_of(tensor)
    assert source.release(tensor.nbytes)
    tensor.add_(1)
    assert read_all(source, "file") == before
