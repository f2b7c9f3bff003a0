"""Golden trajectories: a refactor leaves them identical. `python -m tests.golden.record` made them.

On the kind of machine that recorded them every bit must agree. On another the first step's numbers agree up
to rounding; later ones need not: Adam's first step turns the sign of a tiny gradient into a full step.
"""

import json

import pytest

from tests.golden.record import GOLDEN, VARIANTS, environment_of, golden_rows
from tests.support.harness import make_config
from tests.support.shared import UnbrokenRuns

RECORDED = json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_trajectory_is_the_recorded_one(variant: str, unbroken_run: UnbrokenRuns) -> None:
    run = unbroken_run(make_config(*VARIANTS[variant]))
    rows, recorded = golden_rows(run), RECORDED["rows"][variant]

    if environment_of(run) == RECORDED["environment"]:
        assert rows == recorded
    assert len(rows) == len(recorded)
    for name, value in recorded[0].items():
        if isinstance(value, float):
            assert rows[0][name] == pytest.approx(value, rel=2e-3, abs=2e-5), name
