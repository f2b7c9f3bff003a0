"""Files at a URL: in memory, on a path, on an S3 server."""

import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, ClassVar

import pytest

from yaoki.errors import UsageError, YaokiError
from yaoki.mirror import remote as module
from yaoki.mirror.remote import PIECE_BYTES, Remote

from .samples import URL, FaultyFileSystem, Killed


@pytest.fixture(params=["memory", "path", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    urls = {"memory": URL, "path": f"file://{tmp_path}/store/run"}
    url = urls.get(request.param) or request.getfixturevalue("s3_url")
    return Remote(url)


def test_files_are_put_read_listed_and_removed(remote: Remote, tmp_path: Path) -> None:
    assert remote.list() == {}
    assert remote.read("a/b") is None
    (tmp_path / "file").write_bytes(b"content")
    remote.put(tmp_path / "file", "a/b")
    remote.put_bytes(b"small", "c")
    assert remote.list() == {"a/b": 7, "c": 5}
    assert remote.read("a/b") == b"content"
    remote.put_bytes(b"other", "a/b")
    assert remote.read("a/b") == b"other"
    remote.remove("a/b")
    remote.remove("a/b")
    assert remote.list() == {"c": 5}


def test_a_large_file_in_pieces(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 20)
    data = os.urandom((3 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    remote.put(tmp_path / "file", "large")
    pieces = list(remote.pieces("large", len(data)))
    assert [len(piece) for piece in pieces] == [1 << 20] * 3 + [17]
    assert b"".join(pieces) == data
    assert list(remote.pieces("large", 0)) == []


def test_a_file_that_is_gone_here_is_no_fault_of_the_url(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such"):
        remote.put(tmp_path / "no-such", "a")
    assert remote.list() == {}


def test_half_a_file_never_has_its_name_on_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(f"file://{tmp_path}/store")
    remote.put_bytes(b"old", "a")
    (tmp_path / "file").write_bytes(b"x" * 10)

    def torn(file: BinaryIO) -> Iterator[bytes]:
        yield b"half"
        raise Killed

    monkeypatch.setattr(module, "_pieces", torn)
    with pytest.raises(Killed):
        remote.put(tmp_path / "file", "a")
    assert remote.list() == {"a": 3}
    assert remote.read("a") == b"old"
    monkeypatch.undo()
    remote.put(tmp_path / "file", "a")
    assert remote.read("a") == b"x" * 10
    assert PIECE_BYTES > 10


def test_large_files_go_to_s3_in_several_parts(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    parts: list[object] = []
    upload = s3fs.S3FileSystem._upload_file_part_concurrent

    async def with_small_parts(self, bucket, key, mpu, file, chunksize, **kwargs):
        found = await upload(self, bucket, key, mpu, file, chunksize=5 << 20, **kwargs)
        parts.extend(found)
        return found

    monkeypatch.setattr(s3fs.S3FileSystem, "_upload_file_part_concurrent", with_small_parts)
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    data = os.urandom(12 << 20)
    (tmp_path / "file").write_bytes(data)
    remote = Remote(s3_url)
    remote.put(tmp_path / "file", "large")
    assert len(parts) == 3
    assert b"".join(remote.pieces("large", len(data))) == data


def test_an_upload_that_fails_in_the_middle_leaves_nothing_on_s3(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    async def fail(self, *args, **kwargs):
        raise ConnectionError("reset in the middle")

    monkeypatch.setattr(s3fs.S3FileSystem, "_upload_file_part_concurrent", fail)
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    (tmp_path / "file").write_bytes(bytes(12 << 20))
    remote = Remote(s3_url)
    with pytest.raises(YaokiError, match="ConnectionError: reset in the middle"):
        remote.put(tmp_path / "file", "large")
    assert remote.list() == {}


def test_a_bucket_that_is_not_there(s3_server: str) -> None:
    remote = Remote("s3://no-such-bucket/run")
    with pytest.raises(
        YaokiError, match=r"cannot write s3://no-such-bucket/run/a: .*does not exist"
    ) as caught:
        remote.put_bytes(b"", "a")
    assert "test-secret" not in str(caught.value)


def test_an_error_is_told_with_its_place() -> None:
    """Whatever a file system raises."""
    FaultyFileSystem.before = staticmethod(lambda verb, name: 1 / 0)
    message = rf"cannot write {URL}/a: ZeroDivisionError: division by zero"
    with pytest.raises(YaokiError, match=message) as caught:
        Remote(URL).put_bytes(b"", "a")
    assert caught.value.hint


class BusyStore(BaseHTTPRequestHandler):
    """Answers the first requests with "slow down" or by hanging up, and accepts the others."""

    protocol_version = "HTTP/1.1"
    refusals: ClassVar[list[str]] = []
    accepted: ClassVar[list[bytes]] = []

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal == "hang up":
            self.close_connection = True
            return
        if refusal is None:
            self.accepted.append(body)
        self.send_response(200 if refusal is None else 503)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", '"0"')
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def busy_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BusyStore]]:
    pytest.importorskip("s3fs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), BusyStore)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    BusyStore.refusals.clear()
    BusyStore.accepted.clear()
    yield BusyStore
    server.shutdown()


def test_requests_to_s3_are_retried_by_its_client(busy_store: type[BusyStore]) -> None:
    busy_store.refusals[:] = ["slow down", "hang up"]
    Remote("s3://bucket/run").put_bytes(b"content", "a")
    assert busy_store.refusals == []
    assert [b"content" in body for body in busy_store.accepted] == [True]


def test_the_environment_configures_the_retries_of_s3(
    busy_store: type[BusyStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    busy_store.refusals[:] = ["slow down"] * 100
    with pytest.raises(YaokiError, match=r"cannot write s3://bucket/run/a: .*Service Unavailable"):
        Remote("s3://bucket/run").put_bytes(b"content", "a")
    assert busy_store.accepted == []
    assert len(busy_store.refusals) == 99


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="contains a password") as caught:
        Remote("ftp://me:hunter2@host/run")
    assert "hunter2" not in str(caught.value)


def test_a_url_that_nothing_serves() -> None:
    with pytest.raises(UsageError, match="nosuch") as caught:
        Remote("nosuch://bucket/run")
    assert "pip install 'yaoki[storage]'" in str(caught.value)


def test_fsspec_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UsageError, match="needs the package fsspec") as caught:
        Remote(URL)
    assert "pip install 'yaoki[storage]'" in str(caught.value)
