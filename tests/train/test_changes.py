"""What may differ between two attempts of a run, and what is refused with both values and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempts import STEPS, config_of, shown_by, train_here
from tests.support.harness import assert_same_run, checkpoint_steps
from yaoki.errors import DataError, NothingThereError, RefusedError, UsageError
from yaoki.runs.directory import RunDirectory


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("policy.lr", "0.001", "0.0005"),
        ("train.seed", "0", "1"),
        ("train.num_prompts", "4", "2"),
        ("train.group_size", "4", "2"),
        ("engine.batch_size", "6", "16"),
        ("data.tasks_per_epoch", "64", "128"),
        ("kl.measure", "True", "false"),
    ],
)
def test_another_trajectory_is_refused(
    name: str, before: str, after: str, unfinished: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    untouched = contents(unfinished)

    with pytest.raises(RefusedError) as caught:
        train_here(unfinished, config_of(f"{name}={after}"))

    expected = f"{name}: the run has {before}, now asked for {after.capitalize()}"
    assert expected in caught.value.message
    assert f"put {name} back" in str(caught.value.hint)
    assert caught.value.exit_code == 3
    assert contents(unfinished) == untouched


def test_every_refused_change_is_named_at_once(unfinished: Path) -> None:
    with pytest.raises(RefusedError, match=r"(?s)train\.seed.*critic\.lr"):
        train_here(unfinished, config_of("critic.lr=1", "train.seed=5"))


def test_free_changes_are_told_and_stored(unfinished: Path, finished: Path) -> None:
    config = config_of("checkpoint.every_steps=1", "run.show_samples_every=7", "train.steps=4")

    shown = shown_by(unfinished, config)

    assert "changed since the last attempt: checkpoint.every_steps: the run has 2, now asked for 1" in shown
    assert "run.show_samples_every" in shown
    assert RunDirectory(unfinished).stored_config() == config
    assert checkpoint_steps(unfinished) == [2, 3, 4]
    rows = [json.loads(line) for line in (unfinished / "metrics.jsonl").open()]
    same = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [row["fingerprint"] for row in rows[:STEPS]] == [row["fingerprint"] for row in same]


def write_tasks(path: Path, last_answer: str = "19") -> Path:
    rows = [{"problem": f"{n}+{n}=", "answer": str(2 * n)} for n in range(9)]
    rows.append({"problem": "9+9=", "answer": last_answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_dataset_is_compared_by_content(tmp_path: Path) -> None:
    def config_with(file: Path, steps: int) -> object:
        files = json.dumps([str(file)])
        return config_of(
            'data.family=""', f"data.files={files}", "eval.every_steps=0", f"train.steps={steps}"
        )

    here = write_tasks(tmp_path / "tasks.jsonl")
    train_here(tmp_path / "run", config_with(here, 1))
    train_here(tmp_path / "unbroken", config_with(here, 2))

    write_tasks(here, last_answer="18")
    with pytest.raises(RefusedError, match="the training data has changed") as caught:
        train_here(tmp_path / "run", config_with(here, 2))
    assert "step-00000001" in caught.value.message
    assert "data.files" in str(caught.value.hint)
    assert checkpoint_steps(tmp_path / "run") == [1]

    here.write_text("not a task\n")
    with pytest.raises(DataError, match="row 1"):
        train_here(tmp_path / "run", config_with(here, 2))

    here.unlink()
    moved = write_tasks(tmp_path / "moved.jsonl")
    assert "changed since the last attempt: data.files" in shown_by(tmp_path / "run", config_with(moved, 2))
    assert_same_run(tmp_path / "run", tmp_path / "unbroken", 2)
    outcomes = [attempt.outcome for attempt in RunDirectory(tmp_path / "run").attempts()]
    assert outcomes == ["finished", "failed", "failed", "finished"]


def test_config_json_changed_by_hand_is_found(unfinished: Path) -> None:
    stored = json.loads((unfinished / "config.json").read_text())
    stored["policy"]["lr"] = 0.5
    (unfinished / "config.json").write_text(json.dumps(stored))

    with pytest.raises(RefusedError, match="another config"):
        train_here(unfinished, config_of("policy.lr=0.5"))


def test_checkpoints_of_another_run_are_refused(unfinished: Path) -> None:
    facts = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(facts | {"run_id": "another"}))

    with pytest.raises(RefusedError, match="belongs to the run"):
        train_here(unfinished, config_of())


def test_an_edited_template_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "prompt.jinja"
    template.write_text("{{ problem }}<think>")
    config = config_of(f"data.template={template}", "train.steps=2")
    train_here(tmp_path / "run", config)

    template.write_text("Solve {{ problem }}<think>")
    with pytest.raises(RefusedError, match="the training data has changed"):
        train_here(tmp_path / "run", config_of(f"data.template={template}", "train.steps=3"))


def test_an_edited_tokenizer_in_the_run_directory_is_refused(unfinished: Path) -> None:
    path = unfinished / "model" / "policy" / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")

    with pytest.raises(RefusedError, match="what model/"):
        train_here(unfinished, config_of())


def test_other_held_out_tasks_are_refused(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"problem": "1+1=", "answer": "2"}\n')
    overrides = [f'eval.files=["{held_out}"]', "eval.num_tasks=1"]
    train_here(tmp_path / "run", config_of(*overrides, "train.steps=2"))

    held_out.write_text('{"problem": "1+2=", "answer": "3"}\n')
    with pytest.raises(RefusedError, match="held-out tasks"):
        train_here(tmp_path / "run", config_of(*overrides, "train.steps=3"))


def test_a_refused_change_is_not_stored(tmp_path: Path) -> None:
    """The paths of files are free to change, but a config is stored only once it is known to fit."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, answer in ((first, 1), (second, 2)):
        rows = [{"problem": f"{answer}*{i}=", "answer": i} for i in range(8)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["data.family=", "eval.every_steps=0"]
    config = config_of(*settings, f'data.files=["{first}"]', "train.steps=2")
    train_here(tmp_path / "run", config)

    with pytest.raises(RefusedError, match="training data has changed"):
        train_here(tmp_path / "run", config_of(*settings, f'data.files=["{second}"]', "train.steps=3"))
    assert RunDirectory(tmp_path / "run").stored_config() == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.name=gpro"], "there is no algorithm 'gpro'"),
        (["algorithm.name=grpo", "train.group_size=1"], "grpo compares within a group"),
    ],
)
def test_an_algorithm_that_cannot_work_is_refused_before_anything_is_created(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        train_here(tmp_path / "run", config_of(*overrides))
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_not_begun_takes_any_config(tmp_path: Path, finished: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(NothingThereError):
        train_here(path, config_of("policy.init_from=/nowhere", "train.group_size=2"))
    assert not RunDirectory(path).has_begun
    train_here(path, config_of())
    assert RunDirectory(path).has_begun
    assert_same_run(path, finished, STEPS)
