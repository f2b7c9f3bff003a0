import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.data.templates import TEMPLATES, load_template
from yaoki.errors import UsageError
from yaoki.types import make_task

TASK = make_task("What is {{ 1+1 }}?", "2", "file")


def test_the_orz_template():
    text = load_template("orz").render(TASK)
    assert text.startswith("A conversation between User and Assistant. The user asks a question")
    assert (
        "<think> reasoning process here </think> <answer> answer here </answer>. User: You must put" in text
    )
    assert "extracted automatically by the \\boxed{} tag." in text
    assert text.endswith("This is the problem:\nWhat is {{ 1+1 }}?\nAssistant: <think>")


def test_the_short_template():
    assert load_template("short").render(TASK) == "What is {{ 1+1 }}?<think>"


@given(st.text())
def test_a_problem_goes_in_as_it_is(problem):
    for name in TEMPLATES:
        assert problem in load_template(name).render(make_task(problem, "1", "file"))


def test_a_file_of_the_user(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{# one newline at the end is the editor's #}Q: {{ problem | trim }}\n<think>\n")
    assert load_template(str(path)).render(TASK) == "Q: What is {{ 1+1 }}?\n<think>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hello", "does not mention the problem"),
        ("{# {{ problem }} #}", "does not mention the problem"),
        ("{{ problem }} {{ answer }}", "uses answer, which does not exist"),
        ("one\n{{ problem", "line 2: "),
        ("one\n\n{% if problem %}", "line 3: "),
        ("{{ problem }}\n{{ problem.nothing }}", "line 2: 'str object' has no attribute 'nothing'"),
        ("{{ problem }}\n\n{{ problem + 1 }}", "line 3: "),
        ("{{ problem }}\n{{ problem.__class__.__mro__ }}", "line 2: access to attribute '__class__'"),
        ("{{ problem | nothing }}", "line 1: No filter named 'nothing'"),
        ("{% include 'other' %}{{ problem }}", "line 1: "),
        ("{{ problem }}{% for n in range(10**9) %}{% endfor %}", "line 1: Range too big"),
    ],
)
def test_a_bad_template_names_file_and_line(tmp_path, source, message):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    with pytest.raises(UsageError) as caught:
        load_template(str(path)).render(TASK)
    assert f"template {path}" in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint


def test_no_such_template(tmp_path):
    with pytest.raises(UsageError, match="no template 'ortz'") as caught:
        load_template("ortz")
    assert "did you mean 'orz'" in (caught.value.hint or "")
    (tmp_path / "latin").write_bytes(b"\xe4{{ problem }}")
    with pytest.raises(UsageError, match="cannot be read"):
        load_template(str(tmp_path / "latin"))
