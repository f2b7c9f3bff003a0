"""The package's own source, parsed once: what the tests of its form look at."""

import ast
from dataclasses import dataclass
from pathlib import Path

import yaoki

ROOT = Path(yaoki.__file__).parent
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Path below the package, such as `rl/losses.py`."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        """The folder below the package, such as `rollout/engines`; a module at the top is a room."""
        folder = self.path.parent.relative_to(ROOT).as_posix()
        return self.name.removesuffix(".py") if folder == "." else folder

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())


def _read(path: Path) -> Module:
    text = path.read_text("utf-8")
    return Module(path, text, ast.parse(text))


MODULES = [_read(path) for path in sorted(ROOT.rglob("*.py"))]


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of everything that is imported, at the top or inside of functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found
