"""Which folders at the URL a run's directory answers for: what it has had itself, or has passed over.

Only such a folder is removed there once it is gone here. All else at the URL (what another machine has kept
before this directory was fetched) stays. The list is on disk, in storage.json, for an attempt may die
between the removal here and the one there. Knows nothing of what the folders hold.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from yaoki import fs

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
