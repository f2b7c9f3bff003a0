"""A store in memory for every test, and an S3 server of this machine for those that ask for it."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from .samples import faulty_store


@pytest.fixture(autouse=True)
def _store() -> Iterator[None]:
    with faulty_store():
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moto's server, a process of its own; the environment leads there."""
    missing = [name for name in ("moto", "s3fs", "flask") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed, see the extra `test`")
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    secrets = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}
    surroundings = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": address, **secrets}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        _wait_for(address, server)
        yield address
    server.terminate()
    server.wait()


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """A bucket of this test's own and a place in it."""
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/runs/a"


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/data.json", timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
