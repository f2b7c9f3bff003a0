"""Sizes, docstrings, and things that are not done here."""

import ast
import io
import re
import tokenize
from collections import Counter

import pytest

from .source import MODULES, REPOSITORY, Module, functions, imported

MAX_FILE_LINES = 350
MIN_CODE_LINES = 40
"""A smaller module says why it is one."""
MAX_FUNCTION_LINES = 60
MAX_DEPTH = 4
MAX_TOTAL_LINES = 12_500
"""Of code: docstrings, comments and blank lines are free, so that nobody saves on them."""

BROAD_HANDLERS = {
    "thread.py:_run": "a thread's edge: what went wrong is raised where the result is asked for",
    "rewards/pool.py:__enter__": "stops the workers that did start, and raises on",
    "rewards/worker.py:main": "a user's module may raise anything while it is imported",
    "rewards/worker.py:_judge": "a verifier's failure is a verdict, not the end of training",
    "mirror/remote.py:_named_errors": "a file system of another package may raise anything",
    "launch/ray.py:_fit": "a thread's edge: what went wrong is raised in the main thread",
    "train/session.py:_attempt_record": "writes how the attempt ended, and raises on",
}
"""Handlers of any exception, each at the edge of a process: where -> why."""

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "numpy.load", "np.load", "np.save"}

GENERATOR_KEEPERS = {
    "commands/prove.py": "when it kills a run of its own; nothing that trains sees it",
    "rollout/engines/global_state.py": "puts back what vLLM seeds in the learner's process",
    "train/rng.py": "saves and restores the generators of the frameworks",
    "models/builtin.py": "random weights, in a fork of torch's generator with a seed of their own",
}

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.Match)
DRAW = re.compile(r"(random|np\.random|numpy\.random)\.|torch\.(rand(n|int|perm)?|manual_seed)$")
REASON = re.compile(r"\bbecause\b|\bso that\b")
LINE_NUMBER = re.compile(r"\blines? \d|\.py:\d|#L\d", re.IGNORECASE)


def test_a_file_has_one_subject() -> None:
    assert {m.name: m.num_lines for m in MODULES if m.num_lines > MAX_FILE_LINES} == {}


def test_a_function_fits_on_a_screen() -> None:
    sizes = {
        f"{module.name}:{function.name}": ((function.end_lineno or 0) - function.lineno + 1, depth(function))
        for module in MODULES
        for function in functions(module.tree)
    }
    assert len(sizes) > 200
    too_large = {
        name: (lines, nesting)
        for name, (lines, nesting) in sizes.items()
        if lines > MAX_FUNCTION_LINES or nesting > MAX_DEPTH
    }
    assert too_large == {}


def depth(node: ast.AST) -> int:
    """How deep blocks are nested; an `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        is_block = isinstance(child, BLOCKS) and not is_elif
        deepest = max(deepest, depth(child) + is_block)
    return deepest


def test_how_depth_is_counted() -> None:
    source = "if a:\n  pass\nelif b:\n  for c in d:\n    with e:\n      pass\nelse:\n  pass"
    assert depth(ast.parse(source)) == 3
    assert depth(ast.parse("x = 1")) == 0


def num_code_lines(module: Module) -> int:
    """Lines with a token of code on them, docstrings aside."""
    texts: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.end_lineno:
            texts |= set(range(node.lineno, node.end_lineno + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - texts)


def test_the_whole_is_small() -> None:
    assert sum(num_code_lines(module) for module in MODULES) < MAX_TOTAL_LINES


@pytest.mark.xfail(strict=False, reason="rooms are still being rewritten")
def test_a_small_module_says_why_it_is_one() -> None:
    """In its docstring, with a `because` or a `so that`; otherwise it belongs into another file."""
    small = [m for m in MODULES if m.path.name[:2] != "__" and num_code_lines(m) < MIN_CODE_LINES]
    assert len(small) > 5
    silent = [m.name for m in small if not REASON.search(ast.get_docstring(m.tree) or "")]
    assert silent == []


def test_modules_and_public_names_say_what_they_are() -> None:
    silent = [m.name for m in MODULES if len(ast.get_docstring(m.tree) or "") < 20]
    silent += [
        f"{module.name}:{node.name}"
        for module in MODULES
        for node in module.tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names)


def test_only_the_edges_catch_everything() -> None:
    found = Counter(
        f"{module.name}:{function.name}"
        for module in MODULES
        for function in functions(module.tree)
        for node in ast.walk(function)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    )
    assert found == Counter(BROAD_HANDLERS.keys())


def calls_of(module: Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}


def test_nothing_is_unpickled_or_evaluated() -> None:
    for module in MODULES:
        assert not {name.split(".")[0] for name in imported(module.tree)} & FORBIDDEN_MODULES, module.name
        assert not calls_of(module) & FORBIDDEN_CALLS, module.name


def test_nothing_draws_from_a_global_generator() -> None:
    """Random numbers come from coordinates."""
    found = {
        module.name
        for module in MODULES
        if any(DRAW.match(call) for call in calls_of(module))
        or any(name.split(".")[0] == "random" for name in imported(module.tree))
    }
    assert found == set(GENERATOR_KEEPERS)


def test_nothing_happens_at_import() -> None:
    """At the top stand imports, definitions and constants only."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for module in MODULES:
        for node in module.tree.body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_main = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
            if not (isinstance(node, allowed) or is_text or is_main):
                assert module.name == "__main__.py", f"{module.name}: {ast.unparse(node)}"


def test_comments_are_ascii_and_hold_no_line_numbers() -> None:
    """A line number is wrong after the next edit."""
    folders = [REPOSITORY / name for name in ("src", "tests", "benchmarks")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        text = path.read_text("utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                assert token.string.isascii(), f"{path}: {token.string}"
                assert not LINE_NUMBER.search(token.string), f"{path}: {token.string}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                assert not LINE_NUMBER.search(docstring), f"{path}: {docstring}"
