"""A row as JSON and as numbers for curves, and the page that says what they mean."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.metrics import step_row
from yaoki.journal.step_row import CLOCK_FIELDS, StepRow, StepTiming, reference

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_what_does_not_apply_is_absent_from_the_json_and_comes_back_so() -> None:
    row = step_row(3, policy_loss=0.25)
    plain = row.to_json()
    assert plain["policy_loss"] == 0.25
    assert plain["accuracy"] is None
    assert "critic_loss" not in plain
    assert StepRow.model_validate_json(row.model_dump_json(exclude_unset=True)) == row


def test_numbers_for_curves_are_all_numbers_of_the_row_and_no_others() -> None:
    found = dict(step_row(3, policy_loss=0.25, reward=0.75).scalars())
    assert found["policy_loss"] == 0.25
    assert found["reward"] == 0.75
    assert found["verifier_errors"] == 0
    assert {f"timing/{name}" for name in StepTiming.model_fields} <= found.keys()
    others = {"step", "attempt", "accuracy", "history", "fingerprint", "timing", "critic_loss"}
    assert not others & found.keys()


def test_a_row_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        step_row(1).reward = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        step_row(1, color="red")
    with pytest.raises(ValidationError, match="reward"):
        step_row(1, reward="1.0")


def test_what_depends_on_the_clock_is_in_fields_of_its_own() -> None:
    assert set(CLOCK_FIELDS) <= StepRow.model_fields.keys()
    assert not [name for name in StepRow.model_fields if name.endswith(("_s", "_seconds"))]


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run: python -m yaoki.journal.step_row > docs/metrics.md"


def test_every_field_has_a_whole_row_in_the_page() -> None:
    rows = dict(re.findall(r"^\| `(\S+)` \| (.*) \|$", reference(), re.MULTILINE))
    names = [*StepRow.model_fields, *(f"timing.{name}" for name in StepTiming.model_fields)]
    assert list(rows) == names
    for name, meaning in rows.items():
        assert len(meaning) > 10, name
        assert meaning.endswith("."), name
        assert "|" not in meaning.replace("\\|", ""), f"{name}: another column would begin"


def test_the_command_prints_the_page() -> None:
    command = [sys.executable, "-m", "yaoki.journal.step_row"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == reference()
