"""Files at a URL, through fsspec: put, read, list, remove. Knows nothing of runs.

A file is put whole or not at all, and a name that was put is seen at once: S3, Google's and Azure's object
stores promise both, and on a path of this machine it is arranged here. Nothing is ever renamed there. What
goes wrong is a YaokiError that says what, where, and what to do; credentials are the environment's.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from yaoki import fs
from yaoki.errors import UsageError, YaokiError
from yaoki.thread import SerialThread

T = TypeVar("T")

PIECE_BYTES = 32 << 20
"""What is read at once; files may be larger than memory."""
_PAUSES_S = (0.2, 1.0)
"""Before the second and the third try; what fails then is for the caller to try again."""
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError)
"""Errors that another try does not cure."""
_UNFINISHED_SUFFIX = ".unfinished"


class Remote:
    """The files under one URL. Any thread may use it, one at a time."""

    def __init__(self, url: str) -> None:
        """Nothing is sent yet.

        Raises UsageError for a URL that holds a password or that no installed package can serve.
        """
        self.url = url.rstrip("/")
        if urlsplit(url).password is not None:
            raise UsageError(
                "run.storage holds a password, which would be written into the run's config",
                hint="leave it out, and set it in the environment, as fsspec's page on that file system says",
            )
        self._fs, self._root = _file_system(self.url)
        self._is_local = "file" in _protocols(self._fs)
        self._worker = SerialThread("storage")  # hands over whatever a file system may raise

    def close(self) -> None:
        """Let go of the thread; what it still does is not waited for."""
        self._worker.close(0)

    def list(self) -> dict[str, int]:
        """Names of all files, and their sizes in bytes; none if there is nothing at the URL."""

        def find() -> dict[str, int]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            prefix = self._root + "/"
            return {
                path.removeprefix(prefix): int(info["size"])
                for path, info in sorted(found.items())
                if path.startswith(prefix) and not path.endswith(_UNFINISHED_SUFFIX)
            }

        return self._try("list", "", find)

    def put(self, source: Path, name: str) -> None:
        """Copy a file of this machine, in several pieces if it is large.

        Raises FileNotFoundError if there is no such file here (any more), YaokiError for all else.
        """
        with source.open("rb"):
            pass

        def copy() -> None:
            if not source.exists():
                raise _Vanished
            if self._is_local:
                self._put_on_a_path(name, _pieces(source))
            else:
                self._fs.put_file(str(source), self._path(name))

        try:
            self._try("write", name, copy)
        except _Vanished as error:
            raise FileNotFoundError(source) from error

    def put_bytes(self, data: bytes, name: str) -> None:
        """Make `data` what `name` holds."""

        def write() -> None:
            if self._is_local:
                self._put_on_a_path(name, iter([data]))
            else:
                self._fs.pipe_file(self._path(name), data)

        self._try("write", name, write)

    def read(self, name: str) -> bytes | None:
        """All bytes of a small file; None if there is none."""

        def read() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        return self._try("read", name, read)

    def pieces(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """The first `size_bytes` of a file, piece by piece; fewer if it has fewer."""
        for start in range(0, size_bytes, PIECE_BYTES):
            end = min(start + PIECE_BYTES, size_bytes)

            def read(start: int = start, end: int = end) -> bytes:
                return bytes(self._fs.cat_file(self._path(name), start=start, end=end))

            yield self._try("read", name, read)

    def remove(self, name: str) -> None:
        """Remove a file; fine if there is none."""

        def remove() -> None:
            path = self._path(name)
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)
            if self._is_local:
                with contextlib.suppress(OSError):  # its folder holds other files
                    Path(path).parent.rmdir()

        self._try("remove", name, remove)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put_on_a_path(self, name: str, pieces: Iterator[bytes]) -> None:
        """Here a rename is at hand, and without it a crash would leave half a file under its name."""
        target = Path(self._path(name))
        unfinished = target.with_name(target.name + _UNFINISHED_SUFFIX)
        fs.make_directory(target.parent)
        fs.remove_file(unfinished)
        with fs.create_durably(unfinished) as file:
            for piece in pieces:
                file.write(piece)
        fs.replace_durably(unfinished, target)

    def _try(self, verb: str, name: str, call: Callable[[], T]) -> T:
        """Up to three times. Whatever a file system raises becomes one of our errors."""
        for pause_s in (*_PAUSES_S, None):
            done = self._worker.submit(call)
            error = done.exception()
            if error is None:
                return done.result()
            if isinstance(error, _Vanished) or not isinstance(error, Exception):
                raise error
            if pause_s is None or isinstance(error, _FINAL):
                break
            time.sleep(pause_s)
        where = f"{self.url}/{name}" if name else self.url
        raise YaokiError(
            f"cannot {verb} {where}: {type(error).__name__}: {error}",
            hint="see to the network, to the permissions and to the credentials in the environment; the run "
            "directory on this machine is not touched by it",
        ) from error


class _Vanished(Exception):
    """The file of this machine is gone, which is no fault of the URL."""


def _file_system(url: str) -> tuple[Any, str]:
    """The file system that serves `url`, and the path of it in there."""
    hint = "install what serves this URL: pip install 'yaoki[storage]' for S3; fsspec's pages for others"
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UsageError("run.storage needs the package fsspec", hint=hint) from error
    try:
        found, root = url_to_fs(url, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise UsageError(f"run.storage: {url}: {error}", hint=hint) from error
    return found, str(root).rstrip("/")


def _protocols(file_system: Any) -> tuple[str, ...]:
    found = file_system.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
