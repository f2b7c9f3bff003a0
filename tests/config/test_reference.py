"""The page that users read says what the schema says."""

import subprocess
import sys
from pathlib import Path

from yaoki.config.load import setting_names
from yaoki.config.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def rows_of(section: str) -> dict[str, list[str]]:
    """Cells of each field's row."""
    _, _, rest = reference().partition(f"\n## [{section}]\n")
    table = rest.partition("\n## ")[0]
    lines = [line.replace("\\|", "&") for line in table.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run: python -m yaoki.config.reference > docs/config.md"


def test_every_setting_has_a_whole_row() -> None:
    for name in setting_names():
        section, _, field = name.partition(".")
        type_, default, _, on_resume, meaning = rows_of(section)[field]
        assert type_, name
        assert default, name
        assert on_resume, name
        assert meaning.endswith("."), name


def test_what_a_row_says() -> None:
    assert rows_of("train")["steps"][:4] == ["integer", "`1000`", ">= 1", "yes"]
    assert rows_of("algorithm")["clip_eps"][:4] == ["number", "`0.2`", "> 0, < 1", "no: trajectory"]
    assert rows_of("algorithm")["name"][:4] == ["text", '`"ppo"`', "not empty", "no: state"]
    assert rows_of("kl")["use"][:4] == ['`"loss"` or `"reward"`', '`"loss"`', "", "no: trajectory"]
    assert rows_of("policy")["betas"][:3] == ["[number, number]", "`[0.9, 0.95]`", "each >= 0, < 1"]
    assert rows_of("engine")["stop"][:3] == ["[text, ...]", '`["</answer>"]`', "each not empty"]
    assert rows_of("data")["files"][:2] == ["[path, ...]", "`[]`"]
    assert rows_of("policy")["init_from"][2] == "not empty"
    assert rows_of("critic")["lr"][1] == "`5e-06`"
    assert "KL(policy && reference)" in rows_of("kl")["estimator"][4]


def test_the_command_needs_no_torch() -> None:
    code = (
        "import runpy, sys; runpy.run_module('yaoki.config.reference', run_name='__main__');"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == reference()
