"""A damaged checkpoint, seen from a whole run: named, passed over, and made up for bit by bit."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempts import STEPS, config_of, shown_by, train_here
from tests.support.harness import assert_same_run
from yaoki.checkpoint import catalog
from yaoki.errors import CorruptCheckpointError

NEWEST = f"step-{STEPS:08d}"
FILES = [
    "critic.optim-00000-of-00001.safetensors",
    "critic.params-00000-of-00001.safetensors",
    "manifest.json",
    "policy.optim-00000-of-00001.safetensors",
    "policy.params-00000-of-00001.safetensors",
    "reference.params-00000-of-00001.safetensors",
    "state.json",
]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def remove(file: Path) -> None:
    file.unlink()


def test_these_are_all_files(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "checkpoints" / NEWEST).iterdir()) == FILES


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, remove])
@pytest.mark.parametrize("name", FILES)
def test_the_file_is_named_and_the_previous_checkpoint_is_used(
    damage: Callable[[Path], None], name: str, copied: Path
) -> None:
    """Asked for no more steps than the previous checkpoint has, so that nothing needs to be trained."""
    damage(copied / "checkpoints" / NEWEST / name)

    output = io.StringIO()
    outcome = train_here(copied, config_of("train.steps=2"), output)

    refusal = next(line for line in output.getvalue().splitlines() if "not used" in line)
    assert refusal.startswith(f"warning: not used: {NEWEST}: {name}: ")
    assert outcome.summary is not None
    assert outcome.summary.steps == 2


@pytest.mark.parametrize(
    ("damage", "name"), [(flip_a_bit, FILES[0]), (cut_short, "state.json"), (remove, "manifest.json")]
)
def test_the_final_bits_are_those_of_an_unbroken_run(
    damage: Callable[[Path], None], name: str, copied: Path, finished: Path
) -> None:
    damage(copied / "checkpoints" / NEWEST / name)

    shown = shown_by(copied, config_of())

    assert shown.count(f"warning: not used: {NEWEST}: {name}: ") == 1
    assert "resuming from step-00000002, grade exact" in shown
    assert_same_run(copied, finished, STEPS)


def test_what_was_restored_is_not_read_again(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to be kept when the next one is saved; and what has not changed is linked to it."""
    read: list[Path] = []
    monkeypatch.setattr(catalog, "verify", read.append)
    train_here(unfinished, config_of())
    assert read == []
    files = [path / "reference.params-00000-of-00001.safetensors" for path in checkpoints_of(unfinished)]
    assert [path.parent.name for path in files] == ["step-00000002", NEWEST]
    assert files[0].samefile(files[1])


def checkpoints_of(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def test_an_unfinished_checkpoint_is_passed_over(unfinished: Path, finished: Path) -> None:
    shutil.copytree(finished / "checkpoints" / NEWEST, unfinished / "checkpoints" / f"{NEWEST}.tmp")

    shown = shown_by(unfinished, config_of())

    assert f"not used: {NEWEST}.tmp: unfinished" in shown
    assert_same_run(unfinished, finished, STEPS)


def test_without_a_usable_checkpoint_nothing_is_done(
    copied: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    for checkpoint in (copied / "checkpoints").iterdir():
        flip_a_bit(checkpoint / "policy.params-00000-of-00001.safetensors")
    before = contents(copied)

    output = io.StringIO()
    with pytest.raises(CorruptCheckpointError) as caught:
        train_here(copied, config_of(), output)

    assert caught.value.exit_code == 4
    assert "step-00000002: policy.params" in caught.value.message
    assert "step-00000003: policy.params" in caught.value.message
    assert caught.value.hint
    assert contents(copied) == before


def test_checkpoints_that_are_gone_are_no_fresh_start(unfinished: Path) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    rows = (unfinished / "metrics.jsonl").read_bytes()

    with pytest.raises(CorruptCheckpointError, match="no checkpoint that can be used") as caught:
        train_here(unfinished, config_of())

    assert caught.value.exit_code == 4
    assert (unfinished / "metrics.jsonl").read_bytes() == rows


def test_a_kill_before_the_last_evaluation_is_not_a_finished_run(copied: Path) -> None:
    """The summary of an earlier end does not speak for the steps that were added since."""
    summary = json.loads((copied / "summary.json").read_text())
    (copied / "summary.json").write_text(json.dumps(summary | {"steps": STEPS - 1}))

    outcome = train_here(copied, config_of())

    assert not outcome.already_finished
    assert json.loads((copied / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", '{"format_version": 2}', r"run\.json holds no run_id"),
        ("run.json", "[]", r"run\.json is no JSON object"),
        ("config.json", None, r"config\.json is missing"),
    ],
)
def test_a_small_file_that_is_not_what_it_was(
    name: str, content: str | None, message: str, copied: Path
) -> None:
    if content is None:
        (copied / name).unlink()
    else:
        (copied / name).write_text(content)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        train_here(copied, config_of(f"train.steps={STEPS + 1}"))
    assert caught.value.hint == "put it back as it was"
