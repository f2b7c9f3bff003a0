"""Saves and restores the global torch and RNG state that an inference engine in the learner's process
modifies.

A file of its own because it concerns every such engine.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_torch_globals() -> Iterator[None]:
    """Run the body without torch's deterministic mode, then restore generators and switches.

    Restored: the generators of python, numpy and torch; thread count, matmul precision, default dtype and
    deterministic mode, which is off in the body because not every operation has a deterministic
    implementation.
    """
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_generators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM on a CPU replaces the function itself
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if cuda_generators:
            torch.cuda.set_rng_state_all(cuda_generators)
