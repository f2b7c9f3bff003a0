"""The names of a run's files at a URL: those in its directory, with `/` between folders.

    run.json, config.json, ...                   small files, replaced as a whole when they change
    model/..., attempts/...                      the same in folders
    rollouts/step-00000124/rank-000-part-...     segments of the journal, never changed
    checkpoints/step-00000120/...                files of a checkpoint, and last of all manifest.json
    checkpoints/step-00000120/metrics.jsonl      the metrics at the time when it was copied

Files with other names are neither fetched nor removed. storage.json is in the directory alone: the folders
that the directory has put at the URL and may remove there.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.layout import MANIFEST, Kind, directory_name, is_plain_name, parse_directory
from yaoki.journal.layout import parse_segment, parse_step, step_name

RUN = "run.json"
SAVED = "saved.json"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
BASE_FILES = (RUN, CONFIG, "start.json")
"""A run can be repeated from these and the model alone; written before anything else."""
LATER_FILES = ("attempts.jsonl", "summary.json", SAVED)
"""These refer to other files; written after them."""
BASE_FOLDER = "model"
LATER_FOLDER = "attempts"
CHECKPOINTS = "checkpoints"
JOURNAL = "rollouts"
RECORD = "storage.json"


def checkpoint_folder(step: int) -> str:
    """Folder of the checkpoint of a step."""
    return f"{CHECKPOINTS}/{directory_name(step)}"


def manifest_name(step: int) -> str:
    """The file whose existence makes a folder a checkpoint."""
    return f"{checkpoint_folder(step)}/{MANIFEST}"


def journal_folder(step: int) -> str:
    """Folder of a step's segments."""
    return f"{JOURNAL}/{step_name(step)}"


def local_checkpoints(directory: Path) -> dict[int, Path]:
    """The directories of a run's committed checkpoints, by step, oldest first."""
    found: dict[int, Path] = {}
    for path in _children(directory / CHECKPOINTS):
        candidate = parse_directory(path)
        if candidate is not None and candidate.kind is Kind.COMMITTED:
            found[candidate.step] = path
    return dict(sorted(found.items()))


def local_segments(directory: Path) -> dict[int, dict[str, Path]]:
    """The segments of a run's journal by step and name; steps without segments are included."""
    found: dict[int, dict[str, Path]] = {}
    for folder in _children(directory / JOURNAL):
        step = parse_step(folder.name)
        if step is not None:
            segments = (path for path in _children(folder) if _is_segment(path.name))
            found[step] = {f"{journal_folder(step)}/{path.name}": path for path in segments}
    return dict(sorted(found.items()))


def local_small_files(directory: Path, files: Iterable[str], folder: str) -> Iterator[tuple[str, Path]]:
    """Name and path of some files of the directory, where they exist, then of all in one of its folders."""
    yield from ((name, directory / name) for name in files if (directory / name).is_file())
    for path in sorted((directory / folder).rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and in_folder(name, folder):
            yield name, path


def in_folder(name: str, folder: str) -> bool:
    """True for a name within this folder, at any depth, that cannot lead out of it."""
    first, *others = name.split("/")
    return first == folder and bool(others) and all(map(is_plain_name, others))


def checkpoint_files(names: Iterable[str]) -> dict[int, list[str]]:
    """The names in the folder of each checkpoint, complete or not, by step."""
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        match name.split("/"):
            case [folder, step_folder, file] if folder == CHECKPOINTS and is_plain_name(file):
                candidate = parse_directory(Path(step_folder))
                if candidate is not None and candidate.kind is Kind.COMMITTED:
                    found.setdefault(candidate.step, []).append(name)
    return dict(sorted(found.items()))


def complete_steps(names: Iterable[str]) -> list[int]:
    """Steps of the checkpoints with a manifest, oldest first."""
    return [step for step, files in checkpoint_files(names).items() if manifest_name(step) in files]


def segment_files(names: Iterable[str]) -> dict[int, list[str]]:
    """The names of the journal's segments, by step."""
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        match name.split("/"):
            case [folder, step_folder, file] if folder == JOURNAL and _is_segment(file):
                step = parse_step(step_folder)
                if step is not None:
                    found.setdefault(step, []).append(name)
    return dict(sorted(found.items()))


def _is_segment(name: str) -> bool:
    segment = parse_segment(name)
    return segment is not None and not segment.suffix


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


class Record:
    """storage.json: the folders that a directory has put at one URL. Only these are ever removed there."""

    def __init__(self, directory: Path, url: str) -> None:
        self._path = directory / RECORD
        self._url = url
        self._folders = set(_read_record(self._path, url))

    def __contains__(self, folder: str) -> bool:
        return folder in self._folders

    def add(self, folders: Iterable[str]) -> None:
        """Durable on return."""
        self._store(self._folders | set(folders))

    def remove(self, folder: str) -> None:
        """The folder was removed here and at the URL."""
        self._store(self._folders - {folder})

    def _store(self, folders: set[str]) -> None:
        if folders != self._folders:
            self._folders = folders
            fs.publish(self._path, encode_record(self._url, folders))


def encode_record(url: str, folders: Iterable[str]) -> bytes:
    """The content of storage.json."""
    return (json.dumps({"url": url, "folders": sorted(folders)}, indent=2) + "\n").encode()


def _read_record(path: Path, url: str) -> list[str]:
    """The folders for this URL; none if the file is damaged, so that nothing is removed by mistake."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    match found:
        case {"url": str(stored), "folders": list(folders)} if stored == url:
            return [folder for folder in folders if isinstance(folder, str)]
    return []
