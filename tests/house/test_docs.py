"""What the documentation names exists."""

import re

from .source import REPOSITORY

NAMED_TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
EXAMPLE = ("checkpoint/test_store.py", "test_x")
"""Shows in docs/recovery.md how tests are named there."""


def test_every_test_that_a_page_names_exists() -> None:
    named = {
        (page.name, file.removeprefix("tests/"), name)
        for page in sorted((REPOSITORY / "docs").glob("*.md"))
        for file, name in NAMED_TEST.findall(page.read_text("utf-8"))
        if (file, name) != EXAMPLE
    }
    assert len(named) > 50
    assert {entry for entry in named if not is_there(entry[1], entry[2])} == set()


def is_there(file: str, name: str) -> bool:
    path = REPOSITORY / "tests" / file
    return path.is_file() and f"def {name}(" in path.read_text("utf-8")
