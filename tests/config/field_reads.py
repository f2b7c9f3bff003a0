"""Which settings a piece of source code reads, by following the config through the code.

A read is `.field` on something known to be a section: `config.train` of a Config, a parameter, attribute or
returned value annotated with a section's class, or a local name for one of these. A property of a section
counts as reads of the fields that it uses. Attributes of anything else, whatever their names, count for
nothing.
"""

import ast
import inspect
from collections.abc import Mapping

from yaoki.config import load, networks, schema
from yaoki.config.fields import Section
from yaoki.config.schema import Config

Kind = type[Section]
Kinds = dict[str, Kind]

SECTIONS: Kinds = {
    name: kind
    for name, kind in (vars(schema) | vars(networks)).items()
    if isinstance(kind, type) and issubclass(kind, Section) and kind is not Section
}


def settings_read(source: str) -> set[str]:
    """Every `section.field` that `source` reads."""
    tree = ast.parse(source)
    reader = _Reader(_returns(tree) | _returns(ast.parse(inspect.getsource(load))))
    reader.body(tree, {}, {})
    return {
        f"{section}.{field}"
        for kind, field in reader.reads
        for section, info in Config.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, kind)
    }


class _Reader:
    def __init__(self, returns: Mapping[str, ast.expr]) -> None:
        self.reads: set[tuple[Kind, str]] = set()
        self._returns = returns

    def body(self, node: ast.AST, names: Kinds, own: Kinds) -> None:
        """`names`: what local names hold; `own`: what attributes of `self` hold."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                self.body(child, dict(names), _attributes_of(child))
            elif isinstance(child, ast.FunctionDef | ast.Lambda):
                self.body(child, names | _parameters_of(child), own)
            else:
                self.body(child, names, own)
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
                self._record(child, names, own)
            if isinstance(child, ast.Assign):
                self._assign(child, names, own)

    def _record(self, node: ast.Attribute, names: Kinds, own: Kinds) -> None:
        kind = self._kind(node.value, names, own)
        if kind is None or kind is Config:
            return
        if node.attr in kind.model_fields:
            self.reads.add((kind, node.attr))
        elif isinstance(getattr(kind, node.attr, None), property):
            source = inspect.getsource(getattr(kind, node.attr).fget)
            self.reads |= {(kind, field) for field in kind.model_fields if f"self.{field}" in source}

    def _assign(self, node: ast.Assign, names: Kinds, own: Kinds) -> None:
        for target in node.targets:
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            values = self._kinds(node.value, len(targets), names, own)
            for name, kind in zip(targets, values, strict=True):
                if isinstance(name, ast.Name):
                    names.pop(name.id, None)
                    names |= {} if kind is None else {name.id: kind}

    def _kinds(self, node: ast.expr, count: int, names: Kinds, own: Kinds) -> list[Kind | None]:
        """What `count` targets get from one expression."""
        if count == 1:
            return [self._kind(node, names, own)]
        if isinstance(node, ast.Tuple) and len(node.elts) == count:
            return [self._kind(part, names, own) for part in node.elts]
        returned = self._returned(node)
        parts = returned.slice.elts if _is_tuple(returned) else []  # type: ignore[union-attr]
        return [_annotated(part) for part in parts] if len(parts) == count else [None] * count

    def _kind(self, node: ast.expr, names: Kinds, own: Kinds) -> Kind | None:
        """The section (or Config) that an expression is, as far as that can be told."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Call):
            return _annotated(self._returned(node))
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return own.get(node.attr)
        if self._kind(node.value, names, own) is Config and node.attr in Config.model_fields:
            annotation = Config.model_fields[node.attr].annotation
            assert isinstance(annotation, type)
            return annotation
        return None

    def _returned(self, node: ast.expr) -> ast.expr | None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._returns.get(node.func.id)
        return None


def _returns(tree: ast.Module) -> dict[str, ast.expr]:
    """Return annotations of the functions of a module."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {function.name: function.returns for function in functions if function.returns is not None}


def _is_tuple(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)


def _annotated(annotation: ast.expr | None) -> Kind | None:
    return SECTIONS.get(annotation.id) if isinstance(annotation, ast.Name) else None


def _parameters_of(function: ast.FunctionDef | ast.Lambda) -> Kinds:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {arg.arg: kind for arg in every if (kind := _annotated(arg.annotation)) is not None}


def _attributes_of(node: ast.ClassDef) -> Kinds:
    """Annotated attributes of a class, and those that `__init__` sets to an annotated parameter."""
    found: Kinds = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            kind = _annotated(item.annotation)
            found |= {} if kind is None else {item.target.id: kind}
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            found |= _set_from_parameters(item)
    return found


def _set_from_parameters(init: ast.FunctionDef) -> Kinds:
    parameters = _parameters_of(init)
    found: Kinds = {}
    for statement in ast.walk(init):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
            kind = parameters.get(statement.value.id)
            attributes = [target.attr for target in statement.targets if isinstance(target, ast.Attribute)]
            found |= {} if kind is None else dict.fromkeys(attributes, kind)
    return found
