"""Which room may import which. An arrow that is not in the table is a mistake, or a decision to be made."""

import subprocess
import sys

import pytest

from .source import MODULES, Module, imported

ROOMS = {
    "errors": set(),
    "types": set(),
    "seeding": set(),
    "fs": set(),
    "strict_json": set(),
    "thread": set(),
    "config": {"errors"},
    "ranks": {"errors", "strict_json"},
    "data": {"errors", "seeding", "types", "data/generated"},
    "data/generated": {"errors", "seeding", "types", "rewards"},
    "rewards": {"errors", "types"},
    "rl": {"errors", "seeding", "types", "config"},
    "models": {"errors", "seeding"},
    "checkpoint": {"errors", "fs", "strict_json", "thread", "types"},
    "checkpoint/io": {"errors", "fs", "strict_json", "thread", "types", "checkpoint", "ranks", "config"},
    "journal": {"errors", "fs", "types"},
    "mirror": {"errors", "fs", "thread", "checkpoint", "journal"},
    "rollout": {"errors", "seeding", "types", "ranks", "journal", "rewards"},
    "rollout/engines": {"errors", "seeding", "types", "ranks", "models", "rollout"},
    "learner": {"errors", "seeding", "types", "ranks", "models", "rl", "config"},
    "runs": {"errors", "fs", "config", "checkpoint"},
    "train": {
        *("errors", "fs", "seeding", "types", "strict_json"),
        *("config", "ranks", "data", "data/generated", "rewards", "rl", "models", "learner"),
        *("rollout", "rollout/engines", "checkpoint", "checkpoint/io", "journal", "mirror", "runs"),
    },
    "commands": {
        *("errors", "fs", "seeding", "types", "strict_json"),
        *("config", "ranks", "rewards", "rl", "models", "rollout", "rollout/engines"),
        *("checkpoint", "checkpoint/io", "journal", "runs", "train"),
    },
    "launch": {"errors", "ranks"},
    "cli": {"errors", "config", "journal", "mirror", "runs", "train", "commands", "launch"}
    | {"checkpoint", "checkpoint/io", "__init__"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""Room -> rooms that it may import. `checkpoint`, `learner` and `rollout` meet only in `train` and above."""

NO_TORCH = ["config", "data", "rewards", "journal", "checkpoint", "mirror", "launch", "runs", "cli"]
"""Rooms whose modules, all of them, are imported without torch."""

IMPORTS_TORCH_LATER = {
    *(f"cli/{name}.py" for name in ("checkpoints", "main", "plan", "runs")),
    "launch/ray.py",
}
"""Modules of these rooms that import torch, or what needs it, where a command comes to need it."""

ONLY_IN = {
    "typer": {"cli/main.py", "cli/options.py", "cli/checkpoints.py", "cli/runs.py", "cli/plan.py"},
    "rich": {"train/console.py"},
    "tensorboard": set(),
    "torch.utils.tensorboard": {"train/trackers.py"},
    "pyarrow": {"data/files.py", *(f"journal/{name}.py" for name in ("browse", "columns", "segments"))},
    "jinja2": {"data/templates.py"},
    "math_verify": {"rewards/math_answers.py"},
    "ray": {"launch/ray.py"},
    "tokenizers": {"models/builtin.py"},
    "fsspec": {"mirror/remote.py"},
    "vllm": {"rollout/engines/vllm_weights.py"},
}
"""Libraries and the few files that know them."""


def rooms_imported(names: set[str]) -> set[str]:
    """The rooms in which dotted names of the package lie."""
    found = set()
    for parts in (name.split(".")[1:] for name in names if name.startswith("yaoki.")):
        rooms = [room for room in (parts[0], "/".join(parts[:2])) if room in ROOMS]
        found.add(rooms[-1] if rooms else "__init__")
    return found


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
        if module.room == "rl":
            assert not {name for name in imported(module.tree) if "distributed" in name or "logging" in name}


@pytest.mark.parametrize("room", ["types errors seeding fs strict_json thread", *NO_TORCH])
def test_what_answers_at_once_needs_no_torch(room: str) -> None:
    modules = [module for module in MODULES if module.room in room.split()]
    names = [f"yaoki.{module.name.removesuffix('.py').replace('/', '.')}" for module in modules]
    imports = "; ".join(f"import {name}" for name in names)
    code = f"import sys; {imports}; print(*sorted({{'torch', 'transformers', 'ray'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_these_modules_of_rooms_without_torch_import_it_later() -> None:
    """Inside of a function, itself or by way of another module."""
    ways = {module.name: way_to_torch(module) for module in MODULES if module.room in NO_TORCH}
    assert {name for name, way in ways.items() if way is not None} == IMPORTS_TORCH_LATER, ways


def way_to_torch(module: Module) -> list[str] | None:
    """Modules that import each other, anywhere in their text, from this one to one that imports torch."""
    waiting, seen = [[module]], {module.name}
    while waiting:
        path = waiting.pop(0)
        names = imported(path[-1].tree)
        if any(name.split(".")[0] in ("torch", "transformers") for name in names):
            return [step.name for step in path]
        for name in names:
            found = module_of(name)
            if found is not None and found.name not in seen:
                seen.add(found.name)
                waiting.append([*path, found])
    return None


def module_of(name: str) -> Module | None:
    """The module of the package in which a dotted name lies."""
    parts = name.split(".")[1:] if name.startswith("yaoki.") else []
    for length in range(len(parts), 0, -1):
        file = "/".join(parts[:length])
        for module in MODULES:
            if module.name in (f"{file}.py", f"{file}/__init__.py"):
                return module
    return None
