"""What is counted without being believed."""

import os
from pathlib import Path

from yaoki.journal.browse import count_replayable
from yaoki.journal.layout import step_name


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / step_name(1)
    folder.mkdir()
    os.mkfifo(folder / f"rank-000-part-00001-{'0' * 32}.parquet")
    found = count_replayable(tmp_path, 0, 2, num_wanted=4, run_id="r", config_digest="c")
    assert (found.num_steps, found.num_rollouts) == (0, 0)
