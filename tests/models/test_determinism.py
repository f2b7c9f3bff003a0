"""Process-wide switches, and that they are put back."""

from collections.abc import Iterator

import pytest
import torch

from yaoki.models.determinism import configure, single_threaded


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("deterministic", [True, False])
def test_configure(deterministic: bool) -> None:
    configure(deterministic=deterministic, num_threads=2)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    configure(deterministic=deterministic, num_threads=0)
    assert torch.get_num_threads() == 2


def test_single_threaded_puts_back_what_was() -> None:
    torch.set_num_threads(2)
    with single_threaded():
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_single_threaded_puts_it_back_after_an_error() -> None:
    torch.set_num_threads(2)
    body = single_threaded()
    body.__enter__()
    assert body.__exit__(KeyError, KeyError(), None) in (False, None)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
