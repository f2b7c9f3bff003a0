"""Run directories whose checkpoints are real in form, and a store in memory that sees and breaks effects.

Steps are done by hand, in the order in which a run does them: rollouts, row, checkpoint, pruning.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import xxhash
from fsspec.implementations.memory import MemoryFileSystem

from yaoki import fs
from yaoki.checkpoint.layout import MANIFEST, directory_name
from yaoki.checkpoint.manifest import FORMAT_VERSION, FileEntry, Manifest, PartEntry, Scope, parse_manifest
from yaoki.journal.layout import SegmentName, step_name
from yaoki.mirror.push import Copier
from yaoki.mirror.remote import Remote

URL = "faulty://bucket/run"


class Killed(BaseException):
    """The process is gone."""


class FaultyFileSystem(MemoryFileSystem):
    """An object store: a put is whole or absent. `before` and `after` each effect something may happen."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class above
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    before: Callable[[str, str], None] = staticmethod(lambda verb, name: None)
    after: Callable[[str, str], None] = staticmethod(lambda verb, name: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def put_file(self, source: str, path: str, *_: Any, **__: Any) -> None:
        self.pipe_file(path, Path(source).read_bytes())

    def pipe_file(self, path: str, value: bytes, *_: Any, **__: Any) -> None:
        name = path.removeprefix("/bucket/run/")
        FaultyFileSystem.before("put", name)
        super().pipe_file(path, value)
        FaultyFileSystem.after("put", name)

    def rm_file(self, path: str) -> None:
        name = path.removeprefix("/bucket/run/")
        FaultyFileSystem.before("remove", name)
        if path not in self.store:
            raise FileNotFoundError(path)
        del self.store[path]
        FaultyFileSystem.after("remove", name)


@contextmanager
def faulty_store() -> Iterator[None]:
    """An empty store under URL, without faults."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    nothing_happens()
    FaultyFileSystem.store.clear()
    yield
    nothing_happens()


def nothing_happens() -> None:
    FaultyFileSystem.before = FaultyFileSystem.after = staticmethod(lambda verb, name: None)


def stored() -> dict[str, bytes]:
    """Name and bytes of all that lies at URL."""
    prefix = "/bucket/run/"
    return {path.removeprefix(prefix): file.getvalue() for path, file in FaultyFileSystem.store.items()}


def whole_checkpoints() -> list[int]:
    """Steps of the checkpoints at URL; each must be whole, and have the rows that it was made with."""
    found = stored()
    steps = []
    for name, data in found.items():
        if not name.endswith(f"/{MANIFEST}"):
            continue
        manifest, folder = parse_manifest(data, name), name.removesuffix(MANIFEST)
        for file in manifest.files:
            assert FileEntry.of(file.name, found[folder + file.name]) == file
        assert len(found[f"{folder}metrics.jsonl"].splitlines()) >= manifest.step
        steps.append(manifest.step)
    assert not steps or {"run.json", "config.json"} <= found.keys()
    return sorted(steps)


def start_run(path: Path, run_id: str = "run-7") -> Path:
    (path / "model").mkdir(parents=True)
    (path / "model" / "tokenizer.json").write_text("{}")
    (path / "config.json").write_text('{"train": {}}')
    (path / "start.json").write_text("{}")
    (path / "lock").write_text("process 1\n")
    (path / "run.json").write_text(json.dumps({"run_id": run_id}))
    (path / "attempts.jsonl").write_text('{"attempt": 1}\n')
    return path


def do_step(path: Path, step: int, salt: str = "") -> None:
    """Rollouts, then the row."""
    add_segment(path, step, f"{step}{salt}")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "salt": salt}) + "\n")


def cut_back(path: Path, step: int) -> None:
    """What a resume does with the rows after its checkpoint."""
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:step]))


def add_segment(path: Path, step: int, content: str, number: int = 1) -> Path:
    data = content.encode()
    folder = path / "rollouts" / step_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    segment = folder / str(SegmentName(0, number, xxhash.xxh3_128_hexdigest(data)))
    segment.write_bytes(data)
    return segment


def save(path: Path, step: int, salt: str = "") -> Path:
    """A committed checkpoint; one of the same step is moved aside and removed."""
    files = {"state.json": f"state {step} {salt}".encode(), "policy.safetensors": b"w" * 100 + salt.encode()}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        step=step,
        created_unix_s=1.0,
        attempt=1,
        run_id="run-7",
        parent=None,
        config_digest="c" * 32,
        dataset_digest="d" * 32,
        environment={},
        world_size=1,
        parts=(PartEntry("progress", Scope.GLOBAL, True),),
        files=tuple(FileEntry.of(name, data) for name, data in sorted(files.items())),
        tensors=(),
    )
    target = path / "checkpoints" / directory_name(step)
    unfinished = target.with_name(target.name + ".tmp")
    unfinished.mkdir(parents=True)
    for name, data in files.items():
        (unfinished / name).write_bytes(data)
    (unfinished / MANIFEST).write_bytes(manifest.to_bytes())
    if target.exists():
        fs.remove_tree(target)
    unfinished.rename(target)
    (path / "saved.json").write_text("{}")
    return target


def prune(path: Path, step: int) -> None:
    """A checkpoint and the journal up to the oldest one that stays, as retention does it."""
    fs.remove_tree(path / "checkpoints" / directory_name(step))
    oldest = min(int(kept.name[5:13]) for kept in (path / "checkpoints").iterdir())
    for folder in (path / "rollouts").iterdir():
        if int(folder.name[5:]) <= oldest:
            shutil.rmtree(folder)


def new_copier(path: Path, url: str = URL) -> Copier:
    """As a new attempt has it."""
    copier = Copier(path, Remote(url), lambda text: None)
    copier.check()
    return copier


def bulk_of(path: Path) -> dict[str, bytes]:
    """All files of a run that a copy must hold, by name."""
    skipped = {"lock", "storage.json"}
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name not in skipped]
    return {str(p.relative_to(path)): p.read_bytes() for p in files if "logs" not in p.parts}
