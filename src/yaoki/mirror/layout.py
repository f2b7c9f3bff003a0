"""What lies where at a URL. The names are those of a run's directory, with `/` between folders.

    run.json, config.json, ...                   small files, replaced as a whole when they change
    model/..., attempts/...                      the same in folders
    rollouts/step-00000124/rank-000-part-...     parts of the journal, never changed
    checkpoints/step-00000120/...                files of a checkpoint, and last of all manifest.json
    checkpoints/step-00000120/metrics.jsonl      the metrics as they were when it was copied

Knows names only. Whatever has another name is not ours: it is neither fetched nor removed.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.layout import MANIFEST, Kind, directory_name, is_plain_name, parse_directory
from yaoki.journal.layout import parse_segment, parse_step, step_name

RUN = "run.json"
SAVED = "saved.json"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
BASE_FILES = (RUN, CONFIG, "start.json")
"""A run can be done again from these and the model alone; written before anything else."""
LATER_FILES = ("attempts.jsonl", "summary.json", SAVED)
"""What has become of the run; true only once that is there."""
BASE_FOLDER = "model"
LATER_FOLDER = "attempts"
CHECKPOINTS = "checkpoints"
JOURNAL = "rollouts"


def checkpoint_folder(step: int) -> str:
    """Folder of the checkpoint of a step."""
    return f"{CHECKPOINTS}/{directory_name(step)}"


def manifest_name(step: int) -> str:
    """The file that makes a folder a checkpoint."""
    return f"{checkpoint_folder(step)}/{MANIFEST}"


def journal_folder(step: int) -> str:
    """Folder of the parts of a step."""
    return f"{JOURNAL}/{step_name(step)}"


def local_checkpoints(directory: Path) -> dict[int, Path]:
    """The directories of a run's committed checkpoints, by step, oldest first."""
    found: dict[int, Path] = {}
    for path in _children(directory / CHECKPOINTS):
        candidate = parse_directory(path)
        if candidate is not None and candidate.kind is Kind.COMMITTED:
            found[candidate.step] = path
    return dict(sorted(found.items()))


def local_parts(directory: Path) -> dict[int, dict[str, Path]]:
    """The parts of a run's journal by step and name; a step without parts is there, too."""
    found: dict[int, dict[str, Path]] = {}
    for folder in _children(directory / JOURNAL):
        step = parse_step(folder.name)
        if step is not None:
            parts = (path for path in _children(folder) if _is_part(path.name))
            found[step] = {f"{journal_folder(step)}/{path.name}": path for path in parts}
    return dict(sorted(found.items()))


def local_small_files(directory: Path, files: Iterable[str], folder: str) -> Iterator[tuple[str, Path]]:
    """Name and path of those that are there: some of the directory itself, then all in a folder of it."""
    yield from ((name, directory / name) for name in files if (directory / name).is_file())
    for path in sorted((directory / folder).rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and in_folder(name, folder):
            yield name, path


def in_folder(name: str, folder: str) -> bool:
    """True for a name that leads into this folder, however deep, and cannot lead out of it."""
    first, *others = name.split("/")
    return first == folder and bool(others) and all(map(is_plain_name, others))


def checkpoint_files(names: Iterable[str]) -> dict[int, list[str]]:
    """By step, the names that lie in the folder of a checkpoint, whole or not."""
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        match name.split("/"):
            case [folder, step_folder, file] if folder == CHECKPOINTS and is_plain_name(file):
                candidate = parse_directory(Path(step_folder))
                if candidate is not None and candidate.kind is Kind.COMMITTED:
                    found.setdefault(candidate.step, []).append(name)
    return dict(sorted(found.items()))


def complete_steps(names: Iterable[str]) -> list[int]:
    """Steps of the checkpoints whose manifest is there, oldest first."""
    return [step for step, files in checkpoint_files(names).items() if manifest_name(step) in files]


def part_files(names: Iterable[str]) -> dict[int, list[str]]:
    """By step, the names of the journal's parts."""
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        match name.split("/"):
            case [folder, step_folder, file] if folder == JOURNAL and _is_part(file):
                step = parse_step(step_folder)
                if step is not None:
                    found.setdefault(step, []).append(name)
    return dict(sorted(found.items()))


def _is_part(name: str) -> bool:
    part = parse_segment(name)
    return part is not None and not part.suffix


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


FILE = "storage.json"


class Record:
    """The list of one directory for one URL."""

    def __init__(self, directory: Path, url: str) -> None:
        self._path = directory / FILE
        self._url = url
        self._folders = set(_read(self._path, url))

    def __contains__(self, folder: str) -> bool:
        return folder in self._folders

    def add(self, folders: Iterable[str]) -> None:
        """Answer for these from now on; durable after it."""
        self._store(self._folders | set(folders))

    def forget(self, folders: Collection[str]) -> None:
        """They are gone here and there."""
        self._store(self._folders - set(folders))

    def _store(self, folders: set[str]) -> None:
        if folders != self._folders:
            self._folders = folders
            fs.publish(self._path, encode(self._url, folders))


def encode(url: str, folders: Iterable[str]) -> bytes:
    """The content of storage.json."""
    return (json.dumps({"url": url, "folders": sorted(folders)}, indent=2) + "\n").encode()


def _read(path: Path, url: str) -> list[str]:
    """None of another URL; none if the file was spoilt: then nothing is removed that might be needed."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    match found:
        case {"url": str(stored), "folders": list(folders)} if stored == url:
            return [folder for folder in folders if isinstance(folder, str)]
    return []
