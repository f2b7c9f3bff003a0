"""Process-wide switches for deterministic computation. Small because they belong to no model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def configure(*, deterministic: bool, num_threads: int) -> None:
    """Set torch's determinism and thread count for this process; call before any tensor work.

    `num_threads` 0 leaves torch's choice. cuBLAS reads its workspace setting when CUDA starts.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Filling fresh memory only guards against reads of uninitialised memory, and costs time on every op.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run the body on one thread in deterministic mode: bits that do not depend on the machine's cores."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
