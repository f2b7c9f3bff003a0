"""Every way to be refused: its exit code, the values, a hint, all on standard error and nothing else."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import OVERRIDES, RECIPE, Done, Trained

Yaoki = Callable[..., Done]


def assert_refused(done: Done, code: int, *parts: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.startswith("error: ") or "\nerror: " in done.err
    assert "\n\nhint: " in done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train"], ["no recipe and no run directory given", "yaoki train recipes/tiny.toml"]),
        (["train", "a.toml", "b.toml"], ["more than one recipe given: a.toml and b.toml"]),
        (["train", RECIPE, "train.step=5"], ["there is no setting train.step", "did you mean train.steps?"]),
        (["train", RECIPE, "steps=5"], ["cannot read the override", "train.steps=200"]),
        (["train", RECIPE, "nonsense.a=5"], ["nonsense"]),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, list) else None,
)
def test_usage(yaoki: Yaoki, words: list[object], parts: list[str]) -> None:
    assert_refused(yaoki(*words), 2, *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.steps=0", ["train.steps", "not 0"]),
        ("train.steps=many", ["train.steps", "not 'many'"]),
        ("algorithm.name=dpo", ["algorithm.name", "'dpo'", "did you mean 'ppo'", "grpo"]),
        ("policy.decay_steps=3", ["policy.schedule and policy.decay_steps", "set policy.decay_steps"]),
    ],
)
def test_wrong_values_say_what_to_set(yaoki: Yaoki, override: str, parts: list[str]) -> None:
    done = yaoki("train", RECIPE, override)
    assert done.code == 2
    assert done.err.startswith("error: ")
    for part in parts:
        assert part in done.err


def test_a_command_that_is_none(yaoki: Yaoki) -> None:
    done = yaoki("trian")
    assert done.code == 2
    assert "trian" in done.err


def test_nothing_there(yaoki: Yaoki, copied: Path) -> None:
    for words in (["train", "--run", "nowhere"], ["status", "nowhere"], ["export", "nowhere", "--to", "out"]):
        assert_refused(yaoki(*words), 5, "there is no run in nowhere")
    words = ["train", "--run", "nowhere", f"run.storage=file://{copied.parent}/bucket"]
    assert_refused(
        yaoki(*words), 5, f"no run in nowhere, nor at file://{copied.parent}/bucket", "run.storage="
    )
    assert_refused(yaoki("train", "nowhere.toml"), 5, "there is no recipe nowhere.toml")
    assert yaoki("eval", "nowhere").code == 5
    assert_refused(
        yaoki("export", copied, "--at", 7, "--to", "out"), 5, "no checkpoint of step 7", "of steps 1, 2"
    )
    assert not Path("nowhere").exists()
    assert not Path("out").exists()


def test_a_changed_config_is_refused_with_both_values(yaoki: Yaoki, copied: Path) -> None:
    for override, before, after in [
        ("policy.lr=1e-3", "0.0003", "0.001"),
        ("train.seed=3", "0", "3"),
        ("train.num_prompts=8", "4", "8"),
    ]:
        name = override.split("=")[0]
        done = yaoki("train", "--run", copied, "train.steps=3", override)
        assert_refused(done, 3, f"{name}: the run has {before}, now asked for {after}", f"put {name} back")
        assert "yaoki fork" in done.err
    done = yaoki("train", RECIPE, "--run", copied)
    assert_refused(done, 3, "train.num_prompts: the run has 4, now asked for 32", "engine.stop")


def test_a_directory_in_use_or_not_a_runs(yaoki: Yaoki, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert_refused(yaoki("train", RECIPE, "--run", "mine"), 3, "not empty and holds no run")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    assert_refused(yaoki("train", RECIPE, "--run", "file"), 3, "cannot be a run directory")


def test_no_usable_checkpoint(yaoki: Yaoki, copied: Path, trained: Trained) -> None:
    for checkpoint in (copied / "checkpoints").iterdir():
        (checkpoint / "manifest.json").write_text("{}")
    metrics = (copied / "metrics.jsonl").read_bytes()

    for words in (
        ["train", "--run", copied],
        ["train", trained.recipe, *OVERRIDES, "--run", copied],
        ["export", copied, "--to", "out"],
        ["eval", copied],
    ):
        assert_refused(
            yaoki(*words),
            4,
            "no checkpoint that can be used",
            "step-00000001: manifest.json",
            "step-00000002",
        )
    assert (copied / "metrics.jsonl").read_bytes() == metrics
    assert not Path("out").exists()

    status = yaoki("status", copied)
    assert status.code == 0
    assert "resume       impossible" in status.out
    assert json.loads(yaoki("status", copied, "--json").out)["resume"]["possible"] is False


def test_a_damaged_checkpoint_that_is_asked_for_by_name(yaoki: Yaoki, copied: Path) -> None:
    (copied / "checkpoints" / "step-00000002" / "state.json").unlink()
    done = yaoki("export", copied, "--at", 2, "--to", "out")
    assert done.code == 4
    assert "state.json" in done.err
    assert yaoki("export", copied, "--to", "out").code == 0, "the newest valid one is that of step 1"


def test_an_export_never_writes_over_anything(yaoki: Yaoki, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    assert_refused(yaoki("export", copied, "--to", "out"), 3, "out already exists", "--to")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_eval_needs_tasks(yaoki: Yaoki, copied: Path, tmp_path: Path) -> None:
    assert_refused(yaoki("eval", copied / "model" / "policy"), 2, "has no tasks of its own", "--data")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"problem": "1+1=", "answer": "2"}\n')
    config = json.loads((copied / "config.json").read_text())
    config["data"] |= {"family": "", "files": [str(tasks)], "verifier": "math"}
    (copied / "config.json").write_text(json.dumps(config))
    assert_refused(yaoki("eval", copied), 2, "has no evaluation tasks of its own", "--data")
    assert_refused(yaoki("eval", copied, "--data", "nowhere.json"), 5, "nowhere.json")


def test_eval_of_a_folder_without_a_model(yaoki: Yaoki, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    (tmp_path / "empty").mkdir()
    assert_refused(yaoki("eval", "empty", "--data", "tasks.jsonl"), 5, "no usable model at 'empty'")


def test_a_run_whose_architecture_is_gone(yaoki: Yaoki, copied: Path) -> None:
    shutil.rmtree(copied / "model")
    done = yaoki("train", "--run", copied, "train.steps=3")
    assert_refused(done, 5, "model/policy")
    assert re.search("hint: .+", done.err)
