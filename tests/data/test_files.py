import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from yaoki.data.files import LoadedTasks, read_tasks
from yaoki.errors import DataError, NothingThereError, UsageError
from yaoki.types import tasks_digest

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real datasets are not beside the repository"
)


def read(
    *files: Path, format: str = "auto", on_bad_row: str = "error", columns=("problem", "answer")
) -> LoadedTasks:
    return read_tasks(
        files, format=format, problem_column=columns[0], answer_column=columns[1], on_bad_row=on_bad_row
    )


def pairs(loaded: LoadedTasks) -> list[tuple[str, str]]:
    return [(task.problem, task.answer) for task in loaded.tasks]


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def orz_row(problem: object, answer: object, speaker: str = "human") -> list[dict[str, object]]:
    truth = {"value": answer, "pass_at_n": 0.5}
    return [{"from": speaker, "value": problem}, {"from": "assistant", "ground_truth": truth, "extra": [1]}]


def test_orz_training_form_with_its_quirks(tmp_path):
    rows = [orz_row("  What is 1+1? \n", " 2 "), orz_row("Q", 3, speaker="Human")]
    loaded = read(write(tmp_path / "train.json", rows))
    assert pairs(loaded) == [("What is 1+1?", "2"), ("Q", "3")]
    assert loaded.tasks[0].source == "train.json"
    assert loaded.num_skipped == 0


def test_orz_evaluation_form(tmp_path):
    rows = [{"prompt": [{"from": "user", "value": "Q"}], "final_answer": "\\frac{1}{2}"}]
    assert pairs(read(write(tmp_path / "eval.json", rows))) == [("Q", "\\frac{1}{2}")]


def test_gsm8k_drops_reasoning_and_commas_in_numbers(tmp_path):
    row = {"question": "How many?", "answer": "So 1,000 #### no\n#### 1,234,567"}
    other = {"question": "Pairs?", "answer": "#### (1, 2)"}
    path = write(tmp_path / "gsm8k.jsonl", json.dumps(row) + "\n\n" + json.dumps(other) + "\n")
    assert pairs(read(path)) == [("How many?", "1234567"), ("Pairs?", "(1, 2)")]
    assert pairs(read(path, format="gsm8k")) == pairs(read(path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", "7"), (7, "7"), (7.0, "7"), (0.25, "0.25"), (-3, "-3"), (1e300, "1e+300"), (2**70, str(2**70))],
)
def test_named_columns_take_text_and_numbers(tmp_path, value, expected):
    path = write(tmp_path / "rows.jsonl", json.dumps({"q": "Q", "a": value, "more": None}))
    for format in ("auto", "jsonl"):
        assert pairs(read(path, format=format, columns=("q", "a"))) == [("Q", expected)]


def test_a_json_array_of_named_columns(tmp_path):
    path = write(tmp_path / "rows.json", [{"problem": "Q", "answer": "A"}])
    assert pairs(read(path)) == pairs(read(path, format="jsonl")) == [("Q", "A")]


def test_parquet_by_name_by_content_and_with_gsm8k_columns(tmp_path):
    table = pyarrow.table({"problem": ["P1", "P2"], "answer": [1.0, 2.5], "other": [[1], [2]]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.bin").write_bytes((tmp_path / "rows.parquet").read_bytes())
    for path, format in ((tmp_path / "rows.parquet", "parquet"), (tmp_path / "rows.bin", "auto")):
        assert pairs(read(path, format=format)) == [("P1", "1"), ("P2", "2.5")]
    parquet.write_table(pyarrow.table({"question": ["Q"], "answer": ["#### 5"]}), tmp_path / "g.parquet")
    assert pairs(read(tmp_path / "g.parquet")) == [("Q", "5")]


def test_files_of_different_formats_keep_their_order(tmp_path):
    second = write(tmp_path / "a.jsonl", json.dumps({"problem": "2", "answer": "b"}))
    first = write(tmp_path / "b.json", [orz_row("1", "a"), orz_row("0", "z")])
    loaded = read(first, second)
    assert pairs(loaded) == [("1", "a"), ("0", "z"), ("2", "b")]
    assert tasks_digest(loaded.tasks) != tasks_digest(read(second, first).tasks)
    assert [task.source for task in loaded.tasks] == ["b.json", "b.json", "a.jsonl"]


def test_digest_and_uid_never_change(tmp_path):
    path = write(tmp_path / "rows.jsonl", json.dumps({"problem": "47+38-12=", "answer": "73"}))
    loaded = read(path)
    assert loaded.tasks[0].uid == "61a1a27830de56ae"
    assert tasks_digest(loaded.tasks) == "3370d7af712e622ab9dca26beb02a534"


BAD_ROWS = [
    ('{"problem": "Q", "answ', "not valid JSON"),
    ('{"problem": "Q"}', "no 'answer' (it has: problem)"),
    ('{"problem": "  ", "answer": "1"}', "'problem' is empty"),
    ('{"problem": "Q", "answer": " "}', "'answer' is empty"),
    ('{"problem": 5, "answer": "1"}', "should be text, got int '5'"),
    ('{"problem": "Q", "answer": true}', "text or a number, got bool"),
    ('{"problem": "Q", "answer": null}', "text or a number, got NoneType"),
    ('{"problem": "Q", "answer": [1]}', "text or a number, got list"),
    ('{"problem": "Q", "answer": NaN}', "not a finite number"),
    ('{"problem": "\\ud800", "answer": "1"}', "surrogate"),
    ("[" * 100_000, "not valid JSON"),
    ('{"problem": "Q", "answer": 1' + "0" * 5000 + "}", "not valid JSON"),
    ("3", "got int '3'"),
]


@pytest.mark.parametrize(("line", "what"), BAD_ROWS)
def test_a_bad_row_is_named_or_counted(tmp_path, line, what):
    good = json.dumps({"problem": "Q", "answer": "A"})
    path = write(tmp_path / "rows.jsonl", f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, row 3: " in caught.value.message
    assert what in caught.value.message
    assert 'data.on_bad_row="skip"' in (caught.value.hint or "")
    loaded = read(path, on_bad_row="skip")
    assert pairs(loaded) == [("Q", "A")] * 2
    assert loaded.num_skipped == 1
    assert loaded.skipped == (caught.value.message,)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([{"from": "human", "value": "Q"}], "list of two turns"),
        (orz_row("Q", "A", speaker="gpt"), "from 'human'"),
        ([{"from": "human", "value": "Q"}, {"from": "assistant"}], "no 'ground_truth'"),
        (
            [{"from": "human", "value": "Q"}, {"from": "assistant", "ground_truth": "A"}],
            "ground_truth should be",
        ),
        ([{"value": "Q"}, {"ground_truth": {"value": "A"}}], "no 'from'"),
        ({"problem": "Q", "answer": "A"}, "list of two turns"),
    ],
)
def test_a_bad_orz_row_is_named(tmp_path, row, what):
    path = write(tmp_path / "train.json", [orz_row("Q", "A"), row])
    with pytest.raises(DataError, match=r"row 2: ") as caught:
        read(path)
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": [], "final_answer": "A"}, "list of turns"),
        ({"prompt": "Q", "final_answer": "A"}, "list of turns"),
        ({"prompt": [{"from": "user", "value": "Q"}]}, "no 'final_answer'"),
    ],
)
def test_a_bad_evaluation_row_is_named(tmp_path, row, what):
    with pytest.raises(DataError, match=r"row 1: ") as caught:
        read(write(tmp_path / "eval.json", [row]), format="orz_eval")
    assert what in caught.value.message


def test_gsm8k_without_its_mark_is_a_bad_row(tmp_path):
    path = write(tmp_path / "rows.jsonl", json.dumps({"question": "Q", "answer": "5"}))
    with pytest.raises(DataError, match="'#### ANSWER'"):
        read(path, format="gsm8k")


def test_only_the_first_messages_are_kept_and_all_are_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"problem": "Q", "answer": "A"}\n' + "{}\n" * 20)
    loaded = read(path, on_bad_row="skip")
    assert loaded.num_skipped == 20
    assert len(loaded.skipped) == 5


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", b"\xff\xfe\x00", "not UTF-8 text: byte 0xff at offset 0"),
        ("a.jsonl", b"", "is empty"),
        ("a.json", b" \n ", "is empty"),
        ("a.json", b'[{"problem": "Q", "answer": "A"}, {"prob', "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b"[]", "no task in"),
        ("a.parquet", b"PAR1 and then nothing", "not a readable Parquet file"),
    ],
)
def test_an_unusable_file_is_named_even_when_rows_may_be_skipped(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, on_bad_row="skip")
    assert str(path) in caught.value.message
    assert what in caught.value.message
    assert caught.value.hint


def test_files_in_the_wrong_format(tmp_path):
    text = write(tmp_path / "a.json", '{"problem": "Q"}')
    with pytest.raises(DataError, match="does not start with PAR1"):
        read(text, format="parquet")
    with pytest.raises(DataError, match="JSON dict, not a list"):
        read(text, format="orz")
    with pytest.raises(UsageError, match="no data format 'gsm8'") as caught:
        read(text, format="gsm8")
    assert "did you mean 'gsm8k'" in (caught.value.hint or "")


def test_when_every_row_is_skipped_the_first_one_is_shown(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"q": 1}\n{"q": 2}')
    with pytest.raises(DataError, match=r"2 bad rows were skipped; the first one: .*no 'problem'"):
        read(path, on_bad_row="skip")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(NothingThereError) as caught:
        read(tmp_path / "nowhere.json")
    assert caught.value.hint
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(DataError, match="no files"):
        read()


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([orz_row("Q", "A")]).encode())
    assert pairs(read(path)) == [("Q", "A")]


@needs_real_data
def test_real_training_file():
    loaded = read(REAL / "orz_math_2k.json")
    assert len(loaded.tasks) == 2028
    assert loaded.num_skipped == 0
    assert all(t.problem == t.problem.strip() and t.answer == t.answer.strip() for t in loaded.tasks)
    assert tasks_digest(loaded.tasks) == "a4c99bf459a0f212c2d9544f45314092"
    assert tasks_digest(loaded.tasks) == tasks_digest(read(REAL / "orz_math_2k.json", format="orz").tasks)


@needs_real_data
def test_real_evaluation_files():
    loaded = read(REAL / "math500.json", REAL / "aime2024.json")
    assert [task.source for task in loaded.tasks] == ["math500.json"] * 500 + ["aime2024.json"] * 30
    assert loaded.tasks[500].answer == "73"
