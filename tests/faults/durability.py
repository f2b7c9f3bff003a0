"""A model of a disk that loses power: what is there afterwards, given everything that a program did.

The rules are those of POSIX, stricter than any one file system: the bytes of a file survive an fsync of that
file; a name survives an fsync of the directory that it is in; a rename is one change of the directory if both
names are in the same one, else a change of each. Whatever was not synced may be lost or may survive. It is
pure: trees in, trees out.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .effects import Entry

Tree = dict[str, bytes | None]
"""What a disk holds: path -> bytes of a file, or None for a directory."""


@dataclass(eq=False)
class _File:
    data: bytes = b""
    synced: bytes = b""
    """What an fsync has made durable; nothing of a new file."""


@dataclass(eq=False)
class _Change:
    """One atomic change of a directory."""

    names: dict[str, "_Node | None"]
    """What each name stands for from now on."""
    needs: "_Change | None" = None
    """Without it, this one does not survive by chance: a file that moves is not lost on the way."""
    is_durable: bool = False


@dataclass(eq=False)
class _Directory:
    names: dict[str, "_Node"] = field(default_factory=dict)
    synced: dict[str, "_Node"] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)
    """Since the last fsync."""

    def change(self, names: dict[str, "_Node | None"], needs: _Change | None = None) -> _Change:
        made = _Change(names, needs)
        self.changes.append(made)
        _apply(self.names, names)
        return made


_Node = _File | _Directory


def _apply(names: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """The disk while the program runs. All that it holds at first is durable."""

    def __init__(self, tree: Tree) -> None:
        self._root = _Directory()
        for path, data in sorted(tree.items()):
            parent, name = self._place(path)
            node = _Directory() if data is None else _File(data, data)
            parent.names[name] = parent.synced[name] = node

    def apply(self, entries: Iterable[Entry]) -> None:
        """Let the recorded effects happen, in order."""
        for entry in entries:
            if not entry.effect.path.startswith(".."):
                getattr(self, f"_{entry.effect.kind}")(entry)

    def now(self) -> Tree:
        """What a program sees: what is there after a kill without a power cut."""
        return self._tree(lambda directory: directory.names, lambda file: file.data)

    def all_lost(self) -> Tree:
        """After a power cut: nothing survives but what was synced."""
        return self._tree(lambda directory: directory.synced, lambda file: file.synced)

    def names_survive(self) -> Tree:
        """After a power cut: all names, but the bytes only as far as synced. The classic file of length 0."""
        return self._tree(lambda directory: directory.names, lambda file: file.synced)

    def lengths_survive(self) -> Tree:
        """After a power cut: names and lengths; zeros where bytes were not synced."""
        return self._tree(lambda directory: directory.names, _zeros_where_unsynced)

    def bytes_survive(self) -> Tree:
        """After a power cut: names only as far as synced, bytes all."""
        return self._tree(lambda directory: directory.synced, lambda file: file.data)

    def some_survive(self, randomness: random.Random) -> Tree:
        """After a power cut: any of the unsynced changes to directories and files."""
        contents: dict[_File, bytes] = {}
        survives: dict[_Change, bool] = {}

        def has_survived(change: _Change) -> bool:
            if change not in survives:
                may = change.needs is None or change.needs.is_durable or has_survived(change.needs)
                survives[change] = may and randomness.random() < 0.5
            return survives[change]

        def names_of(directory: _Directory) -> dict[str, _Node]:
            names = dict(directory.synced)
            for change in directory.changes:
                if has_survived(change):
                    _apply(names, change.names)
            return names

        def data_of(file: _File) -> bytes:
            versions = [file.data, file.synced, _zeros_where_unsynced(file)]
            return contents.setdefault(file, randomness.choice(versions))

        return self._tree(names_of, data_of)

    def _tree(
        self, names_of: Callable[[_Directory], dict[str, _Node]], data_of: Callable[[_File], bytes]
    ) -> Tree:
        tree: Tree = {}

        def walk(directory: _Directory, prefix: str) -> None:
            for name, node in sorted(names_of(directory).items()):
                if isinstance(node, _File):
                    tree[prefix + name] = data_of(node)
                else:
                    tree[prefix + name] = None
                    walk(node, f"{prefix}{name}/")

        walk(self._root, "")
        return tree

    def _node(self, path: str) -> _Node:
        node: _Node = self._root
        for name in PurePosixPath(path).parts:
            assert isinstance(node, _Directory), path
            node = node.names[name]
        return node

    def _place(self, path: str) -> tuple[_Directory, str]:
        """The directory that holds the last name of `path`."""
        parent = self._node(str(PurePosixPath(path).parent))
        assert isinstance(parent, _Directory), path
        return parent, PurePosixPath(path).name

    def _file(self, entry: Entry) -> _File:
        node = self._node(entry.effect.path)
        assert isinstance(node, _File), entry.effect
        return node

    def _promise(self, entry: Entry) -> None:
        pass

    def _open(self, entry: Entry) -> None:
        parent, name = self._place(entry.effect.path)
        if name not in parent.names:
            parent.change({name: _File()})

    def _mkdir(self, entry: Entry) -> None:
        parent, name = self._place(entry.effect.path)
        parent.change({name: _Directory()})

    def _unlink(self, entry: Entry) -> None:
        parent, name = self._place(entry.effect.path)
        parent.change({name: None})

    _rmdir = _unlink

    def _link(self, entry: Entry) -> None:
        parent, name = self._place(entry.target)
        parent.change({name: self._file(entry)})

    def _replace(self, entry: Entry) -> None:
        node = self._node(entry.effect.path)
        source, old_name = self._place(entry.effect.path)
        target, new_name = self._place(entry.target)
        if source is target:
            source.change({old_name: None, new_name: node})
        else:
            arrival = target.change({new_name: node})
            source.change({old_name: None}, needs=arrival)

    def _write(self, entry: Entry) -> None:
        file = self._file(entry)
        before = file.data[: entry.offset].ljust(entry.offset, b"\0")
        file.data = before + entry.data + file.data[entry.offset + len(entry.data) :]

    _pwrite = _write_direct = _write

    def _ftruncate(self, entry: Entry) -> None:
        file = self._file(entry)
        file.data = file.data[: entry.offset].ljust(entry.offset, b"\0")

    def _posix_fallocate(self, entry: Entry) -> None:
        file = self._file(entry)
        file.data = file.data.ljust(entry.offset, b"\0")

    def _fsync(self, entry: Entry) -> None:
        node = self._node(entry.effect.path)
        if isinstance(node, _File):
            node.synced = node.data
        else:
            node.synced = dict(node.names)
            for change in node.changes:
                change.is_durable = True
            node.changes.clear()

    _fdatasync = _fsync


def _zeros_where_unsynced(file: _File) -> bytes:
    """As long as the file is now; each byte is that of now only where the synced one is the same."""
    same = bytes(now if now == then else 0 for now, then in zip(file.data, file.synced, strict=False))
    return same.ljust(len(file.data), b"\0")


def write_tree(tree: Tree, root: Path) -> Path:
    """Make a real directory of it."""
    root.mkdir()
    for path, data in sorted(tree.items()):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
    return root
