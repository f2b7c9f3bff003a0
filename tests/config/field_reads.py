"""Which settings a piece of source code reads, by following the config through the code.

A read is `.field` on something known to be a section: `config.train` of a Config, a parameter, attribute or
returned value annotated with a section's class, or a local name for one of these. A class of the same source
whose attributes are sections passes them on. A property of a section counts as reads of the fields that it
uses. Attributes of anything else, whatever their names, count for nothing.
"""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaoki
from yaoki.config import networks, schema
from yaoki.config.fields import Section
from yaoki.config.schema import Config


@dataclass(frozen=True)
class Holder:
    """A class that is no section, with the kinds of its attributes."""

    attributes: "Kinds"


Kind = type[Section] | Holder
Kinds = dict[str, Kind]

SECTIONS: Kinds = {
    name: kind
    for name, kind in (vars(schema) | vars(networks)).items()
    if isinstance(kind, type) and issubclass(kind, Section) and kind is not Section
}


def settings_read(source: str) -> set[str]:
    """Every `section.field` that `source` reads."""
    tree = ast.parse(source)
    reader = _Reader(_classes(tree), _returns(tree) | _imported_returns(tree))
    reader.body(tree, {})
    return {
        f"{section}.{field}"
        for kind, field in reader.reads
        for section, info in Config.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, kind)
    }


class _Reader:
    def __init__(self, classes: Kinds, returns: Mapping[str, ast.expr]) -> None:
        self.reads: set[tuple[type[Section], str]] = set()
        self._classes = classes
        self._returns = returns

    def body(self, node: ast.AST, names: Kinds) -> None:
        """`names`: what local names hold, `self` among them."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                self.body(child, names | {"self": self._classes[child.name]})
            elif isinstance(child, ast.FunctionDef | ast.Lambda):
                self.body(child, names | _parameters_of(child, self._classes))
            else:
                self.body(child, names)
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
                self._record(child, names)
            if isinstance(child, ast.Assign):
                self._assign(child, names)

    def _record(self, node: ast.Attribute, names: Kinds) -> None:
        kind = self._kind(node.value, names)
        if kind is None or kind is Config or isinstance(kind, Holder):
            return
        if node.attr in kind.model_fields:
            self.reads.add((kind, node.attr))
        elif isinstance(getattr(kind, node.attr, None), property):
            source = inspect.getsource(getattr(kind, node.attr).fget)
            self.reads |= {(kind, field) for field in kind.model_fields if f"self.{field}" in source}

    def _assign(self, node: ast.Assign, names: Kinds) -> None:
        for target in node.targets:
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            values = self._kinds(node.value, len(targets), names)
            for name, kind in zip(targets, values, strict=True):
                if isinstance(name, ast.Name):
                    names.pop(name.id, None)
                    names |= {} if kind is None else {name.id: kind}

    def _kinds(self, node: ast.expr, count: int, names: Kinds) -> list[Kind | None]:
        """What `count` targets get from one expression."""
        if count == 1:
            return [self._kind(node, names)]
        if isinstance(node, ast.Tuple) and len(node.elts) == count:
            return [self._kind(part, names) for part in node.elts]
        returned = self._returned(node)
        parts = returned.slice.elts if _is_tuple(returned) else []  # type: ignore[union-attr]
        if len(parts) != count:
            return [None] * count
        return [_annotated(part, self._classes) for part in parts]

    def _kind(self, node: ast.expr, names: Kinds) -> Kind | None:
        """The section (or Config, or class that holds some) that an expression is, as far as can be told."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Call):
            return _annotated(self._returned(node), self._classes)
        if not isinstance(node, ast.Attribute):
            return None
        owner = self._kind(node.value, names)
        if isinstance(owner, Holder):
            return owner.attributes.get(node.attr)
        if owner is Config and node.attr in Config.model_fields:
            annotation = Config.model_fields[node.attr].annotation
            assert isinstance(annotation, type)
            return annotation
        return None

    def _returned(self, node: ast.expr) -> ast.expr | None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._returns.get(node.func.id)
        return None


def _classes(tree: ast.Module) -> Kinds:
    """The classes of a module, in their order: each may hold those before it."""
    found: Kinds = dict(SECTIONS)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found[node.name] = Holder(_attributes_of(node, found))
    return found


def _returns(tree: ast.Module) -> dict[str, ast.expr]:
    """Return annotations of the functions of a module."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {function.name: function.returns for function in functions if function.returns is not None}


def _imported_returns(tree: ast.Module) -> dict[str, ast.expr]:
    """Return annotations of functions that a module imports by name from another one of the package."""
    found: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("yaoki."):
            continue
        path = Path(yaoki.__file__).parent.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
        returns = _returns(ast.parse(path.read_text("utf-8"))) if path.exists() else {}
        found |= {name.asname or name.name: returns[name.name] for name in node.names if name.name in returns}
    return found


def _is_tuple(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)


def _annotated(annotation: ast.expr | None, classes: Kinds) -> Kind | None:
    return classes.get(annotation.id) if isinstance(annotation, ast.Name) else None


def _parameters_of(function: ast.FunctionDef | ast.Lambda, classes: Kinds) -> Kinds:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {arg.arg: kind for arg in every if (kind := _annotated(arg.annotation, classes)) is not None}


def _attributes_of(node: ast.ClassDef, classes: Kinds) -> Kinds:
    """Annotated attributes of a class, and those that `__init__` sets to an annotated parameter."""
    found: Kinds = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            kind = _annotated(item.annotation, classes)
            found |= {} if kind is None else {item.target.id: kind}
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            found |= _set_from_parameters(item, classes)
    return found


def _set_from_parameters(init: ast.FunctionDef, classes: Kinds) -> Kinds:
    parameters = _parameters_of(init, classes)
    found: Kinds = {}
    for statement in ast.walk(init):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
            kind = parameters.get(statement.value.id)
            attributes = [target.attr for target in statement.targets if isinstance(target, ast.Attribute)]
            found |= {} if kind is None else dict.fromkeys(attributes, kind)
    return found
