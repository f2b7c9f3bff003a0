"""Files at a URL, through fsspec: put, read, list, remove.

A file is put whole or not at all and is visible as soon as it was put: the object stores of S3, Google and
Azure guarantee both; on a local path a rename does. Nothing is renamed in a store. Every failure is a
YaokiError with the operation, the URL and a hint. Credentials come from the environment. Requests are retried
by the store's own client.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from yaoki import fs
from yaoki.errors import UsageError, YaokiError

PIECE_BYTES = 32 << 20
"""Number of bytes read at once; files may be larger than memory."""
_UNFINISHED_SUFFIX = ".unfinished"


class Remote:
    """The files under one URL. Any thread may use it, one at a time."""

    def __init__(self, url: str) -> None:
        """Sends nothing yet.

        Raises UsageError for a URL that contains a password or that no installed package can serve.
        """
        self.url = url.rstrip("/")
        if urlsplit(url).password is not None:
            raise UsageError(
                "run.storage contains a password, which would be written into the run's config",
                hint="leave it out and set it in the environment, see fsspec's page on that file system",
            )
        self._fs, self._root = _file_system(self.url)
        self._is_local = "file" in _protocols(self._fs)

    def list(self) -> dict[str, int]:
        """Names of all files, and their sizes in bytes; empty if there is nothing at the URL."""
        with self._named_errors("list"):
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

    def put(self, source: Path, name: str) -> None:
        """Upload a local file, in several parts if it is large.

        Raises FileNotFoundError if the local file does not exist or disappears, YaokiError for all else.
        """
        with source.open("rb") as file:
            try:
                with self._named_errors("write", name):
                    if self._is_local:
                        self._put_on_path(name, _pieces(file))
                    else:
                        self._fs.put_file(str(source), self._path(name))
            except YaokiError as error:
                if not source.exists():
                    raise FileNotFoundError(source) from error
                raise

    def put_bytes(self, data: bytes, name: str) -> None:
        """Create or replace a small file."""
        with self._named_errors("write", name):
            if self._is_local:
                self._put_on_path(name, [data])
            else:
                self._fs.pipe_file(self._path(name), data)

    def read(self, name: str) -> bytes | None:
        """All bytes of a small file; None if it does not exist."""
        with self._named_errors("read", name):
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def pieces(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """The first `size_bytes` of a file, piece by piece; less if the file is shorter."""
        for start in range(0, size_bytes, PIECE_BYTES):
            with self._named_errors("read", name):
                end = min(start + PIECE_BYTES, size_bytes)
                piece = bytes(self._fs.cat_file(self._path(name), start=start, end=end))
            yield piece

    def remove(self, name: str) -> None:
        """Remove a file; no-op if it does not exist."""
        path = self._path(name)
        with self._named_errors("remove", name):
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)
            if self._is_local:
                with contextlib.suppress(OSError):  # its folder holds other files
                    Path(path).parent.rmdir()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put_on_path(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write under another name and rename: a crash must not leave half a file under its name."""
        target = Path(self._path(name))
        unfinished = target.with_name(target.name + _UNFINISHED_SUFFIX)
        fs.make_directory(target.parent)
        fs.remove_file(unfinished)
        with fs.create_durably(unfinished) as file:
            for piece in pieces:
                file.write(piece)
        fs.replace_durably(unfinished, target)

    @contextlib.contextmanager
    def _named_errors(self, verb: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:
            where = f"{self.url}/{name}" if name else self.url
            raise YaokiError(
                f"cannot {verb} {where}: {type(error).__name__}: {error}",
                hint="check the network, the permissions and the credentials in the environment; the run "
                "directory on this machine is not affected",
            ) from error


def _file_system(url: str) -> tuple[Any, str]:
    """The file system that serves `url`, and the path of `url` in it."""
    hint = "install a package for this URL: pip install 'yaoki[storage]' for S3; see fsspec for others"
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


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
