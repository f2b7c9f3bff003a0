"""How ranks that wait for one another leave their work: all or none. Knows neither the ranks nor the work."""

from collections.abc import Callable
from typing import TypeVar

from yaoki.errors import StopRequested

Result = TypeVar("Result")


def unless_stopped(work: Callable[[], Result], any_reason: Callable[[str | None], str | None]) -> Result:
    """What `work` returns; StopRequested if it was stopped on any rank.

    any_reason: takes the reason why this rank stops, or None, and gives one that some rank has.
    """
    try:
        done, own_reason = work(), None
    except StopRequested as stop:
        own_reason = str(stop)
    if (reason := any_reason(own_reason)) is not None:
        raise StopRequested(reason)
    return done
