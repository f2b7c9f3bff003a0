"""What the documentation names exists: tests, scenarios of faults. Its words and the code's are plain."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS

from .source import MODULES, REPOSITORY

TESTS = REPOSITORY / "tests"
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "benchmarks" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
REFERENCE = re.compile(
    r"(?P<file>(?:\w+/)*test_\w+\.py)(?:::(?P<inside>[\w.:]+))?|\b(?P<bare>(?:Test\w+::)?test_\w+)"
)
"""`room/test_file.py`, `room/test_file.py::test_name`, or `test_name` of the file that is named before it."""
SCENARIO = re.compile(r"\bscenario\s+\*([^*]+)\*")
ROW = re.compile(r"^\| ([a-z][a-z ]+?)(?: \([^)]*\))? \| \d+ \| \d+ \|$", re.M)
WHOLE_RESUME = "a whole resume"
"""A row of the table in docs/recovery.md that is no scenario, but faults/test_resumes.py."""

PRIVATE_PROSE = [
    r"for eyes",
    r"stands? in for",
    r"knows? nothing",
    r"nobody",
    r"somebody",
    r"looks? after",
]
"""Phrases that speak of components as of persons, or that only their author understands."""
PRIVATE_NAMES = {
    *("rest", "rise", "hear", "forget", "leave", "settle", "deal", "together", "take_over", "got_on"),
}
"""Names of functions, for each of which the field has a word: offload, onload, materialize, balance, ..."""


def references(page: Path) -> list[tuple[str, str]]:
    """File and function of every test that a page names; no function where only the file is named."""
    found, file = [], ""
    for match in REFERENCE.finditer(page.read_text("utf-8")):
        file = (match["file"] or file).removeprefix("tests/")
        found.append((file, match["inside"] or match["bare"] or ""))
    return found


@cache
def functions_in(file: str) -> set[str]:
    """Test functions of a file by name, those of classes as `Class::name` too."""
    path = TESTS / file
    if not file or not path.is_file():
        return set()
    tree = ast.parse(path.read_text("utf-8"))
    names = {""}
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef) and member.name.startswith("test_"):
                names |= {member.name, f"{node.name}::{member.name}"}  # type: ignore[union-attr]
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    assert [(file, name) for file, name in references(page) if name not in functions_in(file)] == []


def test_a_wrong_name_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[`house/test_docs.py::test_a_wrong_name_is_found`, `test_form.py`, `test_nothing`]")
    wrong = [name for name in references(page) if name[1] not in functions_in(name[0])]
    assert wrong == [("test_form.py", ""), ("test_form.py", "test_nothing")]


def test_the_scenarios_that_a_page_names_are_those_of_the_tests() -> None:
    names = {scenario.name for scenario in SCENARIOS}
    text = (REPOSITORY / "docs" / "recovery.md").read_text("utf-8")
    assert {" ".join(name.split()) for name in SCENARIO.findall(text)} <= names
    assert set(ROW.findall(text)) == names | {WHOLE_RESUME}


def test_every_promise_of_these_pages_names_a_test() -> None:
    """Each section that promises something ends with its tests, or holds them."""
    for name, silent in SILENT_SECTIONS.items():
        text = (REPOSITORY / "docs" / name).read_text("utf-8")
        sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
        assert {title for title, part in sections.items() if "test_" not in part} == silent, name


SILENT_SECTIONS = {
    "algorithm.md": set(),
    "resume.md": {"What is not promised"},
}
"""Page -> sections that promise nothing of their own."""


@pytest.mark.parametrize("phrase", PRIVATE_PROSE)
def test_prose_is_plain(phrase: str) -> None:
    texts = {str(page.relative_to(REPOSITORY)): page.read_text("utf-8") for page in PAGES}
    texts |= {module.name: module.text for module in MODULES}
    pattern = re.compile(rf"\b{phrase}\b".replace(" ", r"\s+(?:# )?"), re.IGNORECASE)
    assert {name: pattern.findall(text) for name, text in texts.items() if pattern.search(text)} == {}


def test_functions_have_the_names_of_the_field() -> None:
    found = {
        f"{module.name}:{node.name}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in PRIVATE_NAMES
    }
    assert found == set()
