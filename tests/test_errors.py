"""What errors carry beside their message."""

from pathlib import Path

import pytest

from yaoki.errors import CorruptCheckpointError


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/run/step-1/state.json", "state.json: it is cut off"),
        ("/run/step-1", "it is cut off"),
        ("/run/step-10/state.json", "/run/step-10/state.json: it is cut off"),
        ("s3://bucket/run/state.json", "s3://bucket/run/state.json: it is cut off"),
        (None, "it is cut off"),
    ],
)
def test_a_damaged_file_is_named_relative_to_its_checkpoint(path: str | None, text: str) -> None:
    error = CorruptCheckpointError("it is cut off", path=path, hint="restore it from a copy")
    assert error.below(Path("/run/step-1")) == text
    assert error.message == ("it is cut off" if path is None else f"{path}: it is cut off")
    assert (error.reason, error.hint) == ("it is cut off", "restore it from a copy")
