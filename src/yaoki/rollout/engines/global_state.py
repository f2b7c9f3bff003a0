"""Lets a library that rearranges the process work beside a learner whose bits must not change.

An inference engine in the same process seeds every generator and sets torch's switches for all. Knows no
such library.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_torch_globals() -> Iterator[None]:
    """Run the body without torch's deterministic mode, and put generators and switches back after it.

    Kept: the generators of python, numpy and torch; thread count, matrix precision, default dtype and
    deterministic mode. The body is free of the latter because not every operation has a deterministic kind.
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
        torch.set_num_threads = set_num_threads  # vLLM on a CPU takes the function itself away
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if cuda_generators:
            torch.cuda.set_rng_state_all(cuda_generators)
