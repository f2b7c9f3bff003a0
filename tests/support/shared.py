"""What a test session makes once and then only reads, whichever process of pytest-xdist asks for it first."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from yaoki.config.schema import Config


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test session have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` in the first process that asks for it.

    It is read-only from then on: a later request fails if a file was added, removed or written to.
    """
    folder = session_folder(factory) / name
    record = folder.with_name(f"{name}.files")
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            record.write_text(json.dumps(_files(folder)))
        assert _files(folder) == json.loads(record.read_text()), f"a test wrote to {folder}, which is shared"
    return folder


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of the last write of each file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


class UnbrokenRuns:
    """Runs that were never interrupted, by config and number of workers."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._requests: dict[str, tuple[Config, int]] = {}

    def __call__(self, config: Config, num_workers: int = 1) -> Path:
        """Directory of the run of `config`, trained to its end. To continue it, continue a copy."""
        digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=8).hexdigest()
        name = f"unbroken-{digest}-{num_workers}"
        self._requests[name] = config, num_workers
        return self._made(name)

    def check(self) -> None:
        """Fails if a test of this process wrote to one of them."""
        for name in self._requests:
            self._made(name)

    def _made(self, name: str) -> Path:
        config, num_workers = self._requests[name]

        def train(folder: Path) -> None:
            from tests.support.harness import run_to_end
            from tests.support.workers import run_workers_to_end

            if num_workers == 1:
                run_to_end(folder / "run", config)
            else:
                run_workers_to_end(folder / "run", config, num_workers)

        return made_once(self._factory, name, train) / "run"
