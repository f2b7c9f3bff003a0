"""Forks: a new run that goes on from another's checkpoint, on another path or on the same."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempts import config_of, shown_by, train_here
from tests.support.harness import final_state, trajectory
from tests.support.metrics import read_metrics
from yaoki import fs
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.layout import directory_name
from yaoki.checkpoint.verify import verify
from yaoki.commands.fork import fork
from yaoki.commands.status import run_status
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.runs.directory import RunDirectory

Contents = Callable[[Path], dict[str, bytes]]
AT_2 = directory_name(2)


def fork_at_2(source: Path, target: Path, *overrides: str) -> RunDirectory:
    return RunDirectory(fork(RunDirectory(source), 2, RunDirectory(target), overrides).run)


def train_on(run: RunDirectory) -> str:
    return shown_by(run.path, run.stored_config())


def test_a_fork_that_changes_nothing_ends_with_its_parents_bits(finished: Path, tmp_path: Path) -> None:
    made = fork_at_2(finished, tmp_path / "new")
    assert made.parent is not None
    assert made.parent.changes == ()
    assert "attempt 1: resuming from step-00000002, grade exact" in train_on(made)
    assert final_state(made.path, 3) == final_state(finished, 3)
    assert trajectory(made.path) == trajectory(finished)


def test_it_owns_all_that_it_needs(copied: Path, tmp_path: Path) -> None:
    made = fork_at_2(copied, tmp_path / "new")
    shutil.rmtree(copied)
    train_on(made)
    assert verify(made.checkpoints / directory_name(3)).run_id == made.run_id


def test_it_says_where_it_comes_from(finished: Path, tmp_path: Path) -> None:
    made = fork_at_2(finished, tmp_path / "new", "policy.lr=1e-5", "train.steps=4", "run.num_threads=1")
    manifest = verify(finished / "checkpoints" / AT_2)
    parent = json.loads((made.path / "run.json").read_text())["parent"]
    assert parent == {
        "run_id": RunDirectory(finished).run_id,
        "path": str(finished),
        "step": 2,
        "config_digest": manifest.config_digest,
        "dataset_digest": manifest.dataset_digest,
        "changes": ["policy.lr"],
    }
    assert made.run_id.startswith("new-")
    assert made.run_id != RunDirectory(finished).run_id
    assert made.attempts() == []
    assert made.stored_config().train.steps == 4
    assert [row["step"] for row in read_metrics(made.metrics_path)] == [1, 2]


def test_another_path_begins_at_the_parents_state(finished: Path, tmp_path: Path) -> None:
    made = fork_at_2(finished, tmp_path / "new", "policy.lr=1e-5", "train.group_size=3")
    status = run_status(made)
    assert (status.resume.grade, status.resume.step) == ("fork", 2)
    assert status.resume.reasons == ("train.group_size is not the parent's", "policy.lr is not the parent's")
    assert "grade fork: the parent's state, from here on another run" in train_on(made)
    rows = trajectory(made.path)
    assert rows[:2] == trajectory(finished)[:2]
    assert rows[2]["fingerprint"]["policy.params"] != trajectory(finished)[2]["fingerprint"]["policy.params"]
    done = run_status(made)
    assert [attempt.num_steps for attempt in done.attempts] == [1]
    assert (done.resume.grade, done.resume.step) == ("exact", 3), "its own checkpoint is its own"


def test_a_fork_is_resumed_like_any_run(finished: Path, tmp_path: Path) -> None:
    """Two ways to step 5: at one go, and with a stop at step 3 whose checkpoint is lost."""
    whole = fork_at_2(
        finished, tmp_path / "whole", "policy.lr=1e-5", "train.steps=5", "checkpoint.every_steps=1"
    )
    train_on(whole)
    parts = fork_at_2(
        finished, tmp_path / "parts", "policy.lr=1e-5", "train.steps=4", "checkpoint.every_steps=1"
    )
    train_on(parts)
    shutil.rmtree(parts.checkpoints / directory_name(4))
    (parts.path / "summary.json").unlink()
    train_here(parts.path, whole.stored_config())
    assert final_state(parts.path, 5) == final_state(whole.path, 5)
    assert trajectory(parts.path) == trajectory(whole.path)


def test_a_fork_of_a_fork_of_the_same_checkpoint(finished: Path, tmp_path: Path) -> None:
    first = fork_at_2(finished, tmp_path / "first", "policy.lr=1e-5")
    second = fork_at_2(first.path, tmp_path / "second", "critic.lr=1e-5")
    assert second.parent is not None
    assert second.parent.changes == ("policy.lr", "critic.lr")
    assert second.parent.path == str(first.path)
    assert "grade fork" in train_on(second)


def test_other_tasks_begin_with_the_next_epoch(finished: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "hard.jsonl"
    tasks.write_text(
        "".join(json.dumps({"problem": f"{i}+{i}=", "answer": str(2 * i)}) + "\n" for i in range(9))
    )
    made = fork_at_2(
        finished, tmp_path / "new", "data.family=", f'data.files=["{tasks}"]', "eval.num_tasks=3"
    )
    before = load(made.checkpoints / AT_2).parts["data"].json
    train_on(made)
    assert before == {"epoch": 0, "cursor": 8}
    assert load(made.checkpoints / directory_name(3)).parts["data"].json == {"epoch": 1, "cursor": 4}


def test_another_seed_works(finished: Path, tmp_path: Path) -> None:
    train_on(fork_at_2(finished, tmp_path / "new", "train.seed=5"))


def test_data_that_changed_without_being_asked_to_is_still_refused(copied: Path, tmp_path: Path) -> None:
    made = fork_at_2(copied, tmp_path / "new", "policy.lr=1e-5")
    (made.model / "policy" / "generation_config.json").write_text("{}")
    with pytest.raises(RefusedError, match="the training data has changed"):
        train_here(made.path, made.stored_config())


def test_other_checkpoints_of_the_parent_are_strangers(finished: Path, tmp_path: Path) -> None:
    made = fork_at_2(finished, tmp_path / "new", "policy.lr=1e-5")
    shutil.copytree(finished / "checkpoints" / directory_name(3), made.checkpoints / directory_name(3))
    with pytest.raises(RefusedError, match="was made with another config"):
        train_here(made.path, made.stored_config())


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["algorithm.name=grpo"], ["algorithm.name", "no critic"]),
        (["kl.controller=adaptive", "kl.coef=0.1"], ["kl.controller", "of the other kind"]),
        (["policy.init_from=builtin:tiny"], ["policy.init_from", "come from the checkpoint"]),
        (["kl.measure=false"], ["the checkpoint holds a reference, the fork would need no reference"]),
    ],
    ids=lambda value: value[0],
)
def test_what_the_state_does_not_fit_is_refused(
    overrides: list[str], parts: list[str], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError) as caught:
        fork_at_2(finished, tmp_path / "new", *overrides)
    assert all(part in str(caught.value) for part in parts)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(finished: Path, tmp_path: Path, contents: Contents) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(RefusedError, match="already exists"):
        fork_at_2(finished, tmp_path / "mine")
    with pytest.raises(NothingThereError, match="no checkpoint of step 1"):
        fork(RunDirectory(finished), 1, RunDirectory(tmp_path / "new"), [])
    with pytest.raises(NothingThereError, match="there is no run"):
        fork_at_2(tmp_path / "nowhere", tmp_path / "new")
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert fork_at_2(finished, tmp_path / "empty").exists


def test_a_damaged_parent_leaves_nothing_behind(copied: Path, tmp_path: Path) -> None:
    metrics = (copied / "metrics.jsonl").read_bytes()
    (copied / "metrics.jsonl").write_bytes(metrics.replace(b'"step": 1', b'"step": 7'))
    with pytest.raises(CorruptCheckpointError, match=r"metrics\.jsonl does not begin with"):
        fork_at_2(copied, tmp_path / "new")
    (copied / "metrics.jsonl").write_bytes(metrics)
    (copied / "checkpoints" / AT_2 / "state.json").write_bytes(b"{}")
    with pytest.raises(CorruptCheckpointError, match=r"state\.json"):
        fork_at_2(copied, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def inodes(run: Path) -> list[int]:
    return [path.stat().st_ino for path in sorted((run / "checkpoints" / AT_2).iterdir())]


def test_the_parents_files_are_linked(finished: Path, tmp_path: Path) -> None:
    assert inodes(fork_at_2(finished, tmp_path / "new").path) == inodes(finished)


def test_on_another_disk_they_are_copied(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))

    monkeypatch.setattr(fs, "link", link)
    made = fork(RunDirectory(finished), 2, RunDirectory(tmp_path / "new"), [])
    assert not made.linked
    assert not set(inodes(made.run)) & set(inodes(finished))
    assert verify(made.run / "checkpoints" / AT_2) == verify(finished / "checkpoints" / AT_2)


def test_a_fork_that_was_killed_leaves_no_run_and_can_be_made_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """Nothing handles it, as nothing handles a SIGKILL."""

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(fs, "replace_durably", lambda source, target: None if target.name != "new" else die())
        patch.setattr(fs, "remove_tree", die)
        patch.setattr(fs, "publish", lambda path, data: path.write_bytes(data))
        with pytest.raises(KilledError):
            fork_at_2(finished, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new.tmp"]
    fork_at_2(finished, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_fork_has_no_part_in_its_parents_url(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    train_here(parent, config_of(f"run.storage=file://{tmp_path}/bucket"))
    assert fork_at_2(parent, tmp_path / "fork").stored_config().run.storage == ""
    own = f"file://{tmp_path}/own"
    assert fork_at_2(parent, tmp_path / "other", f"run.storage={own}").stored_config().run.storage == own
