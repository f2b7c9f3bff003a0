"""What a block of code takes of host memory for tensors, as torch's own allocator reports it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


class Allocations:
    """Filled when the block is left; in bytes."""

    largest = 0
    """One piece of memory."""
    peak = 0
    """All that was held at once, beyond what was there before."""


@contextmanager
def allocations() -> Iterator[Allocations]:
    found = Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    events = profiler.profiler.kineto_results.events()
    reports = sorted((event for event in events if event.name() == "[memory]"), key=lambda e: e.start_ns())
    sizes = [event.nbytes() for event in reports]
    found.largest = max(sizes, default=0)
    found.peak = max(accumulate(sizes), default=0)
