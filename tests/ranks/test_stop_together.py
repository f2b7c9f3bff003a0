"""All leave or none."""

import pytest

from yaoki.errors import StopRequested
from yaoki.ranks.agree import stop_together


def work_that_stops() -> int:
    raise StopRequested("mine")


def test_work_that_nobody_stops() -> None:
    assert stop_together(lambda: 3, lambda mine: mine) == 3


def test_work_that_is_stopped_here() -> None:
    told: list[str | None] = []

    def any_reason(mine: str | None) -> str | None:
        told.append(mine)
        return mine

    with pytest.raises(StopRequested, match="mine"):
        stop_together(work_that_stops, any_reason)
    assert told == ["mine"]


def test_work_that_is_stopped_elsewhere() -> None:
    with pytest.raises(StopRequested, match="theirs"):
        stop_together(lambda: 3, lambda mine: "theirs")
    with pytest.raises(StopRequested, match="theirs"):
        stop_together(work_that_stops, lambda mine: "theirs")


def test_what_goes_wrong_is_not_a_stop() -> None:
    def work() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_together(work, lambda mine: pytest.fail("nobody is asked"))
