"""Writers killed with SIGKILL at random instants: what was acknowledged is there, nothing torn is read."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from yaoki.journal.layout import step_name
from yaoki.journal.segments import encode_segment
from yaoki.types import RolloutKey

from .samples import PROMPTS, STEP, VERSION, batch, journal

BATCHES = [
    [RolloutKey(STEP, prompt, 10 * number + sample) for prompt in range(4) for sample in range(3)]
    for number in range(40)
]
NUM_TOKENS = 200


def fail(warning: str) -> None:
    """Nothing may be quarantined."""
    raise AssertionError(warning)


def keep_journaling(run: Path, attempt: int, pipe: int) -> None:
    """Write what is missing, and say on the pipe what is durable: one byte for each micro-batch."""
    with journal(run, attempt, flush_seconds=0.002, flush_rollouts=24, warn=fail) as log:
        log.open_step(STEP, VERSION, PROMPTS)
        written: list[int] = []
        for number, keys in enumerate(BATCHES):
            if log.find(keys) is not None:
                continue
            log.append(batch(keys, num_tokens=NUM_TOKENS))
            written.append(number)
            if number % 3 == 2:
                log.sync()
                os.write(pipe, bytes(written))
                written = []


def killed(run: Path, attempt: int, after: int, then_s: float) -> tuple[set[int], bool]:
    """Kill a writer a little after it has acknowledged `after` micro-batches.

    Returns those that it had acknowledged, and whether it came to its end before.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            keep_journaling(run, attempt, write_end)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        acknowledged = set(pipe.read(after))
        time.sleep(then_s)
        os.kill(child, signal.SIGKILL)
        acknowledged |= set(pipe.read())
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return acknowledged, not os.WIFSIGNALED(status)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_is_found(tmp_path: Path, seed: int) -> None:
    """Each attempt goes on where the one before was killed."""
    randomness = random.Random(seed)
    acknowledged: set[int] = set()
    for attempt in range(1, 7):
        newly, finished = killed(tmp_path, attempt, randomness.randrange(12), randomness.uniform(0, 0.02))
        acknowledged |= newly
        with journal(tmp_path, attempt + 100, rank=1) as log:
            log.open_step(STEP, VERSION, PROMPTS)
            found = [log.find(keys) for keys in BATCHES]
        for number, (keys, samples) in enumerate(zip(BATCHES, found, strict=True)):
            assert samples is not None or number not in acknowledged
            expected = [rollout.judged for rollout in batch(keys, num_tokens=NUM_TOKENS)]
            assert samples in (None, expected)
        if finished:
            break
    assert len(acknowledged) > 10
    with journal(tmp_path, 50, warn=fail) as log:
        log.open_step(STEP, VERSION, PROMPTS)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_segment_that_was_cut_short_before_its_rename_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "rollouts" / step_name(STEP)
    directory.mkdir(parents=True)
    with journal(tmp_path, warn=fail) as log:
        name, data = encode_segment(batch(BATCHES[0]), log._identity, 1)
        (directory / f"{name}.tmp").write_bytes(data.to_pybytes()[:1000])
        log.open_step(STEP, VERSION, PROMPTS)
        assert os.listdir(directory) == []
        log.append(batch(BATCHES[0]))
    assert [segment.split("-")[3] for segment in os.listdir(directory)] == ["00002"]
