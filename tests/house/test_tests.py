"""The form of the tests themselves."""

import re

import pytest

from .source import REPOSITORY

IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<module>[\w.]+)\s+import\s+(?P<names>[^#\n]+)|import\s+(?P<plain>[^#\n]+))", re.M
)
TEST_MODULE = re.compile(r"\b(test_\w+|conftest)\b")
FILES = sorted(path for folder in ("tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py"))


def imports_of_tests(text: str) -> list[str]:
    """Imports out of a test module or a conftest, also in code that a test runs in another interpreter."""
    found = []
    for match in IMPORT.finditer(text):
        module, plain = match["module"], match["plain"]
        names = plain if module is None else f"{module} {match['names'] if set(module) == {'.'} else ''}"
        if TEST_MODULE.search(names):
            found.append(match[0].strip())
    return found


def test_no_module_imports_from_a_test_module_or_a_conftest() -> None:
    """What two modules share is in tests/support, or in a helper module of their room."""
    found = {str(path.relative_to(REPOSITORY)): imports_of_tests(path.read_text("utf-8")) for path in FILES}
    assert {name: imports for name, imports in found.items() if imports} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from .test_manifest import signed",
        "from tests.resume.test_workers import worker",
        "from .conftest import Done",
        "    from . import conftest",
        "import tests.cli.test_errors",
    ],
)
def test_such_an_import_is_found(line: str) -> None:
    assert imports_of_tests(f'"""Text."""\nimport os\n{line}\n') == [line.strip()]


def test_a_name_that_looks_like_one_is_no_such_import() -> None:
    assert imports_of_tests("from yaoki.checkpoint import test_of_time\nfrom .samples import some\n") == []
