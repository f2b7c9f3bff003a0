"""metrics.jsonl: appended, positioned, cut back; what a crash can leave behind is survived or named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.metrics import read_metrics, step_row
from yaoki.errors import CorruptCheckpointError, YaokiError
from yaoki.journal.metrics import LogPosition, MetricsLog, held_out_accuracies, read_rows
from yaoki.journal.step_row import CLOCK_FIELDS, StepRow

ROWS = [step_row(step, reward=step / 3, history="x" * step) for step in range(1, 8)]
"""Each of another length; the tests write the first five."""


def opened(directory: Path) -> MetricsLog:
    return MetricsLog(directory / "metrics.jsonl", directory / "old" / "superseded.jsonl")


def written(directory: Path, rows: list[StepRow]) -> list[LogPosition]:
    """A closed log of these rows; the positions before, between and after them."""
    log = opened(directory)
    positions = [log.position()]
    for row in rows:
        log.log(row)
        positions.append(log.position())
    log.close()
    return positions


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    positions = written(tmp_path, ROWS[:5])
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:5]
    assert read_metrics(tmp_path / "metrics.jsonl") == [row.to_json() for row in ROWS[:5]]
    assert [position.num_rows for position in positions] == list(range(6))
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert positions[-1].num_bytes == len(data)
    assert [data[: position.num_bytes].count(b"\n") for position in positions] == list(range(6))


def test_a_row_is_visible_at_once(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.log(ROWS[0])
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:1]
    log.sync()
    log.close()


def test_opening_again_goes_on_where_it_was(tmp_path: Path) -> None:
    positions = written(tmp_path, ROWS[:2])
    log = opened(tmp_path)
    assert log.position() == positions[-1]
    log.log(ROWS[2])
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:3]


def test_fields_that_do_not_apply_are_absent(tmp_path: Path) -> None:
    """Null is a value: it says that there was nothing to measure."""
    written(tmp_path, [step_row(1, policy_loss=0.25, kl_to_ref=None)])
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["policy_loss"] == 0.25
    assert row["kl_to_ref"] is None
    assert "critic_loss" not in row
    assert read_rows(tmp_path / "metrics.jsonl")[0].to_json() == row


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    rows=st.lists(
        st.builds(
            step_row,
            st.integers(1, 2**53),
            reward=finite,
            accuracy=st.none() | finite,
            critic_loss=st.none() | finite,
            history=st.text(),
            fingerprint=st.dictionaries(st.text(max_size=5), st.text()),
        ),
        max_size=5,
    )
)
def test_any_row_takes_one_line(rows: list[StepRow], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("log")
    written(directory, rows)
    assert read_rows(directory / "metrics.jsonl") == rows
    assert (directory / "metrics.jsonl").read_bytes().count(b"\n") == len(rows)


@pytest.mark.parametrize("kept", range(6))
def test_cutting_back(tmp_path: Path, kept: int) -> None:
    positions = written(tmp_path, ROWS[:5])
    log = opened(tmp_path)
    log.cut_back(positions[kept])
    assert log.position() == positions[kept]
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:kept]
    superseded = tmp_path / "old" / "superseded.jsonl"
    assert read_rows(superseded) == ROWS[kept:5]
    assert superseded.exists() is (kept < 5)
    other = step_row(kept + 1, history="another")
    log.log(other)
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [*ROWS[:kept], other]
    assert log.position().num_bytes == (tmp_path / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize("torn", ['{"step": 6', "{", '{"step": 6}', "\x00" * 20])
def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    positions = written(tmp_path, ROWS[:5])
    with path.open("a") as file:
        file.write(torn)
    assert read_rows(path) == ROWS[:5]
    log = opened(tmp_path)
    assert log.position() == positions[-1]
    log.log(ROWS[5])
    assert log.position().num_bytes == path.stat().st_size
    log.cut_back(positions[3])
    log.close()
    assert read_rows(tmp_path / "old" / "superseded.jsonl") == ROWS[3:6]
    assert read_rows(path) == ROWS[:3]


def test_a_log_shorter_than_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    positions = written(tmp_path, ROWS[:5])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: positions[3].num_bytes])
    log = opened(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=r"begin with the 5 rows in .* hold 3 rows") as caught:
        log.cut_back(positions[5])
    assert caught.value.hint
    log.close()
    assert read_rows(path) == ROWS[:3]


def test_a_log_that_was_edited_is_an_error(tmp_path: Path) -> None:
    """Enough rows and bytes, but not the same ones."""
    positions = written(tmp_path, ROWS[:5])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = b'{"step": 1, "edited": true}\n'
    path.write_bytes(b"".join([*lines, lines[-1], lines[-1]]))
    log = opened(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=r"metrics\.jsonl"):
        log.cut_back(positions[3])
    log.close()
    assert path.read_bytes().count(b"\n") == 7


def test_a_log_with_two_rows_made_one_is_an_error(tmp_path: Path) -> None:
    positions = written(tmp_path, ROWS[:5])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    one = b'{"step": 1' + b" " * (len(lines[0] + lines[1]) - 12) + b"}\n"
    path.write_bytes(one + b"".join(lines[2:]))
    log = opened(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=r"begin with the 2 rows in .* hold 1 rows"):
        log.cut_back(positions[2])
    log.close()


ROW = ROWS[0].to_json()
SPOILT = {
    "not json": ("not json", "Invalid JSON"),
    "a list": ("[]", "Input should be an object"),
    "a field missing": (
        json.dumps({k: v for k, v in ROW.items() if k != "reward"}),
        "reward: Field required",
    ),
    "a field too many": (json.dumps({**ROW, "luck": 1.0}), "luck: Extra inputs"),
    "another type": (json.dumps({**ROW, "step": "1"}), "step: Input should be a valid integer"),
    "one within": (json.dumps({**ROW, "timing": {**ROW["timing"], "step_s": "1"}}), "timing.step_s: "),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_line_that_is_no_row_is_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    path, (line, reason) = tmp_path / "metrics.jsonl", SPOILT[kind]
    good = json.dumps(ROW)
    path.write_text(f"{good}\n{line}\n{good}\n", "utf-8")
    with pytest.raises(CorruptCheckpointError, match=rf"metrics\.jsonl: line 2 is not a row \({reason}"):
        read_rows(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["reward", "policy_loss", "timing/step_s"])
def test_a_number_that_json_cannot_hold_is_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    log = opened(tmp_path)
    log.log(ROWS[0])
    field, _, within = name.partition("/")
    fields: dict[str, Any] = {field: value}
    if within:
        fields = {field: ROWS[0].timing.model_copy(update={within: value})}
    with pytest.raises(YaokiError, match=f"{name} is {value}") as caught:
        log.log(step_row(2, **fields))
    assert caught.value.hint
    assert log.position().num_rows == 1
    log.log(ROWS[1])
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:2]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []


def test_accuracy_is_that_of_the_checkpoint_before_the_step() -> None:
    rows = [step_row(1, accuracy=0.25), step_row(2), step_row(3, accuracy=0.5)]
    assert held_out_accuracies(rows) == {0: 0.25, 2: 0.5}
    assert held_out_accuracies(rows, (3, 0.75)) == {0: 0.25, 2: 0.5, 3: 0.75}


def test_what_depends_on_the_clock_is_named() -> None:
    assert CLOCK_FIELDS == ("timing", "attempt")


def test_one_changed_digit_is_an_error(tmp_path: Path) -> None:
    positions = written(tmp_path, ROWS[:5])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 3', 1))
    log = opened(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=r"hold 3 rows of digest"):
        log.cut_back(positions[3])
    log.close()


def test_a_spoilt_row_after_the_checkpoint_is_no_obstacle(tmp_path: Path) -> None:
    """It is cut off with the others; only whole rows are kept as superseded."""
    positions = written(tmp_path, ROWS[:5])
    path = tmp_path / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    data[positions[3].num_bytes + 2] ^= 0x80
    path.write_bytes(bytes(data))
    log = opened(tmp_path)
    log.cut_back(positions[3])
    log.close()
    assert read_rows(path) == ROWS[:3]
    assert read_rows(tmp_path / "old" / "superseded.jsonl") == ROWS[4:5]


def test_a_row_of_another_form_after_the_checkpoint_is_no_obstacle(tmp_path: Path) -> None:
    """The rows that were cut off can be read by every later attempt."""
    positions = written(tmp_path, ROWS[:5])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 4', b'"stop": 4', 1))
    log = opened(tmp_path)
    log.cut_back(positions[3])
    log.close()
    assert read_rows(tmp_path / "old" / "superseded.jsonl") == ROWS[4:5]


def test_a_log_without_a_checkpoint_is_cut_to_nothing(tmp_path: Path) -> None:
    written(tmp_path, ROWS[:5])
    log = opened(tmp_path)
    log.cut_back(None)
    log.log(ROWS[0])
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:1]
    assert read_rows(tmp_path / "old" / "superseded.jsonl") == ROWS[:5]
