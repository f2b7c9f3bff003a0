"""The first part of a manifest, up to the list of tensors: enough for a list of thousands. No torch.

A manifest is canonical JSON, so its keys are sorted: the tensors, the world size and the files' digests come
last, all else is in its first kilobytes. Its own digest cannot be checked that way: this is for showing,
never for trusting.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from yaoki.checkpoint.layout import MANIFEST
from yaoki.errors import CorruptCheckpointError

_END = b',"tensors":['
_BLOCK_BYTES = 32 << 10
_MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a list of checkpoints shows."""

    created_unix_s: float
    attempt: int
    run_id: str
    parent: str | None
    parts: tuple[str, ...]
    size_bytes: int
    """All listed files together."""


def read_head(directory: Path) -> ManifestHead:
    """The head of the manifest in `directory`.

    Raises:
        CorruptCheckpointError: it is missing, unreadable, or has not the form of one.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(_first_bytes(path) + b"}")
        return ManifestHead(
            created_unix_s=float(content["created_unix_s"]),
            attempt=int(content["attempt"]),
            run_id=str(content["run_id"]),
            parent=content["parent"],
            parts=tuple(part["name"] for part in content["parts"]),
            size_bytes=sum(int(file["size_bytes"]) for file in content["files"]),
        )
    except FileNotFoundError as error:
        raise CorruptCheckpointError("missing", path=path) from error
    except OSError as error:
        raise CorruptCheckpointError(f"unreadable: {error.strerror}", path=path) from error
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpointError(f"not a manifest: {error!r}", path=path) from error


def _first_bytes(path: Path) -> bytes:
    """Up to the tensors. Follows no link, waits for no pipe's other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < _MAX_BYTES:
            block = os.read(descriptor, _BLOCK_BYTES)
            data += block
            end = data.find(_END)
            if end >= 0:
                return data[:end]
            if not block:
                break
    finally:
        os.close(descriptor)
    raise ValueError("it has no list of tensors")
