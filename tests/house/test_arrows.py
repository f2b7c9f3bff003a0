"""Which room may import which. An arrow that is not in the table is a mistake, or a decision to be made."""

import subprocess
import sys

import pytest

from .source import MODULES, ROOT, imported

ROOMS = {
    "errors": set(),
    "types": set(),
    "seeding": set(),
    "fs": set(),
    "config": {"errors"},
    "data": {"errors", "seeding", "types"},
    "ppo": {"errors", "seeding", "types"},
    "models": {"errors", "seeding"},
    "checkpoint": {"errors", "fs"},
    "journal": {"errors", "fs", "types"},
    "storage": {"errors", "fs", "checkpoint", "journal"},
    "rollout": {"models", "errors", "seeding", "types"},
    "learner": {"models", "ppo", "config", "errors", "seeding", "types"},
    "run": {
        "learner",
        "rollout",
        "checkpoint",
        "journal",
        "data",
        "models",
        "ppo",
        "config",
        "errors",
        "fs",
        "seeding",
        "storage",
        "types",
    },
    "cli_options": {"errors"},
    "cli_tables": set(),
    "cli_text": {"cli_tables", "run"},
    "launch": {"learner", "errors"},
    "cli_plan": {"cli_options", "cli_tables", "config", "run", "errors"},
    "cli_checkpoints": {"cli_options", "cli_tables", "run", "journal", "errors"},
    "cli_operations": {"cli_options", "cli_text", "run", "journal", "errors"},
    "cli": {
        "cli_options",
        "cli_text",
        "cli_checkpoints",
        "cli_operations",
        "cli_plan",
        "launch",
        "run",
        "journal",
        "config",
        "errors",
        "storage",
        "__init__",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
"""Room -> rooms that it may import. `checkpoint`, `journal` and `data` meet only in `run`."""

ONLY_IN = {
    "typer": {"cli.py", "cli_options.py", "cli_checkpoints.py", "cli_operations.py", "cli_plan.py"},
    "rich": {"run/console.py"},
    "tensorboard": set(),
    "torch.utils.tensorboard": {"run/board.py"},
    "pyarrow": {
        "data/containers.py",
        *(f"journal/{name}.py" for name in ("browse", "columns", "completions", "counting", "parts", "wire")),
    },
    "jinja2": {"data/templates.py"},
    "math_verify": {"data/math_answers.py"},
    "ray": {"launch/ray.py"},
    "tokenizers": {"models/base.py"},
    "fsspec": {"storage/remote.py"},
    "vllm": {"rollout/vllm_model.py"},
}
"""Libraries and the few files that know them."""


def rooms_imported(names: set[str]) -> set[str]:
    inside = {name.split(".")[1] for name in names if name.startswith("yaoki.")}
    return {room if room in ROOMS else "__init__" for room in inside}


def test_every_room_is_in_the_table() -> None:
    assert {module.room for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    for module in MODULES:
        if module.room == room:
            surplus = rooms_imported(imported(module.tree)) - ROOMS[room] - {room}
            assert not surplus, f"{module.name} imports {sorted(surplus)}"


def test_there_is_no_way_back() -> None:
    """The table has no cycle, so there is a lowest room."""
    left = dict(ROOMS)
    while left:
        lowest = [room for room, below in left.items() if not below & left.keys()]
        assert lowest, f"a cycle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in lowest}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_to_few_files(library: str) -> None:
    users = {
        module.name
        for module in MODULES
        if any(name == library or name.startswith(f"{library}.") for name in imported(module.tree))
    }
    assert users == ONLY_IN[library]


def test_the_mathematics_knows_no_logging_and_no_ranks() -> None:
    for module in MODULES:
        if module.room == "ppo":
            assert not {name for name in imported(module.tree) if "distributed" in name or "logging" in name}


def modules_of(folder: str, *names: str) -> list[str]:
    found = names or sorted(path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__")
    return [f"yaoki.{folder}.{name}" for name in found]


@pytest.mark.parametrize(
    "modules",
    [
        ["yaoki.types", "yaoki.errors", "yaoki.seeding"],
        modules_of("config"),
        modules_of("data"),
        modules_of("journal"),
        modules_of("storage"),
        modules_of("checkpoint", "layout", "manifest", "head", "pins", "retention", "verify", "catalog"),
        modules_of("launch"),
        modules_of("run", "directory", "parent", "find", "checkpoints", "fork", "grade", "status", "plan"),
        ["yaoki.cli"],
    ],
    ids=lambda modules: modules[-1],
)
def test_what_answers_at_once_needs_no_torch(modules: list[str]) -> None:
    imports = "; ".join(f"import {name}" for name in modules)
    code = f"import sys; {imports}; print(*sorted({{'torch', 'transformers', 'ray'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
