"""`checkpoints ...`, `fork`, `rollouts`, `mine`: what they print, their exit codes, and their JSON."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .commands import Done, Trained, assert_refused

Yaoki = Callable[..., Done]


def of_json(done: Done) -> list[dict] | dict:
    assert done.code == 0, done.err
    assert done.err == ""
    return json.loads(done.out)


def test_a_list_of_checkpoints(yaoki: Yaoki, copied: Path) -> None:
    (copied / "checkpoints" / "step-00000003.tmp").mkdir()
    yaoki("checkpoints", "pin", copied, "paper", 1)
    lines = yaoki("checkpoints", "list", copied).out.splitlines()
    assert lines[0].split() == [
        *("name", "state", "size", "age", "attempt", "parent", "accuracy", "parts", "pinned", "as")
    ]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["step-00000003.tmp", "unfinished"],
        ["step-00000002", "committed"],
        ["step-00000001", "committed"],
    ]
    assert lines[3].endswith("paper")
    found = of_json(yaoki("checkpoints", "list", copied, "--json"))
    assert [(entry["step"], entry["state"]) for entry in found] == [
        (3, "unfinished"),
        (2, "committed"),
        (1, "committed"),
    ]


def test_verify_says_which_file_and_ends_with_4(yaoki: Yaoki, copied: Path) -> None:
    done = yaoki("checkpoints", "verify", copied)
    assert (done.code, done.err) == (0, "")
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["step-00000002", "ok,"],
        ["step-00000001", "ok,"],
    ]
    (copied / "checkpoints" / "step-00000001" / "state.json").write_bytes(b"{}")
    done = yaoki("checkpoints", "verify", copied)
    assert done.code == 4
    assert "step-00000001  state.json: it has 2 bytes" in done.out
    assert "error: 1 of 2 checkpoints cannot be used: step-00000001\n\nhint: " in done.err
    assert yaoki("checkpoints", "verify", copied, "--at", 2).code == 0
    done = yaoki("checkpoints", "verify", copied, "--json")
    assert done.code == 4
    assert [entry["problem"] is None for entry in json.loads(done.out)] == [True, False]


def test_diff(yaoki: Yaoki, trained: Trained) -> None:
    done = yaoki("checkpoints", "diff", trained.run, 1, 2)
    assert (done.code, done.err) == (0, "")
    assert "tensors differ, by" in done.out
    assert "  global_step: 1 -> 2" in done.out
    found = of_json(yaoki("checkpoints", "diff", trained.run, 2, 2, "--with", trained.run, "--json"))
    assert all(part["equal"] for part in found)


def test_pins_and_prune(yaoki: Yaoki, copied: Path) -> None:
    assert "step 1 is pinned as paper" in yaoki("checkpoints", "pin", copied, "paper", 1).out
    done = yaoki("checkpoints", "prune", copied, "--dry-run", "--keep-last", 1)
    assert done.out.splitlines() == [
        "step-00000002  stays  the newest verified one",
        "step-00000001  stays  pinned as paper",
    ]
    assert of_json(yaoki("checkpoints", "unpin", copied, "paper", "--json")) == {"pin": "paper", "step": 1}
    prune = ("checkpoints", "prune", copied, "--keep-last", 1)
    assert "step-00000001  would go  no rule keeps it" in yaoki(*prune, "--dry-run").out
    assert "would" not in yaoki(*prune, "--keep-hours", 1, "--dry-run").out
    assert "would" not in yaoki("checkpoints", "prune", copied, "--dry-run").out, "as the config says"
    assert (copied / "checkpoints" / "step-00000001").is_dir()
    assert "step-00000001  removed  no rule keeps it" in yaoki(*prune).out
    assert not (copied / "checkpoints" / "step-00000001").exists()


def test_a_fork_can_be_trained(yaoki: Yaoki, trained: Trained) -> None:
    done = yaoki("fork", trained.run, "--at", 1, "--to", "new", "policy.lr=1e-4", "train.steps=3")
    assert (done.code, done.err) == (0, "")
    assert f"new starts from step 1 of {trained.run}, with other policy.lr" in done.out
    assert "train   yaoki train --run new" in done.out
    done = yaoki("train", "--run", "new")
    assert done.code == 0, done.err
    assert "grade fork" in done.err
    status = yaoki("status", "new").out
    assert f"forked from  {trained.run} at step 1, with other policy.lr" in status
    assert "1  finished; 2 steps" in status


def test_a_fork_for_scripts(yaoki: Yaoki, trained: Trained) -> None:
    found = of_json(yaoki("fork", trained.run, "--at", 2, "--to", "new", "train.seed=1", "--json"))
    assert (found["run"], found["linked"], found["begins_epoch"]) == ("new", True, True)
    assert found["parent"]["changes"] == ["train.seed"]


def test_rollouts_of_a_step(yaoki: Yaoki, trained: Trained) -> None:
    rows = of_json(yaoki("rollouts", trained.run, "--step", 2, "--json"))
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, s) for p in range(4) for s in range(4)]
    right = of_json(yaoki("rollouts", trained.run, "--step", 2, "--correct", "--json"))
    wrong = of_json(yaoki("rollouts", trained.run, "--step", 2, "--wrong", "--prompt", 1, "--json"))
    assert right == [row for row in rows if row["reward"] == 1]
    assert wrong == [row for row in rows if row["reward"] == 0 and row["prompt"] == 1]
    shown = yaoki("rollouts", trained.run, "--step", 2, "--prompt", 3).out
    assert shown.count("step 2, prompt 3, sample ") == 4
    assert rows[12]["problem"] in shown
    assert all(c.isprintable() or c in "\n\t" for c in yaoki("rollouts", trained.run, "--step", 2).out)
    assert "no such rollouts" in yaoki("rollouts", trained.run, "--step", 2, "--prompt", 9).out


def test_mined_prompts_can_be_trained_on(yaoki: Yaoki, trained: Trained) -> None:
    done = yaoki("mine", trained.run, "--max-correct", 3, "--to", "hard.json")
    assert done.code == 0, done.err
    assert "prompts of steps " in done.out
    number = len(json.loads(Path("hard.json").read_text()))
    assert done.out.startswith(f"{number} of ")
    fork = ["fork", trained.run, "--at", 2, "--to", "new", "data.family=", 'data.files=["hard.json"]']
    more = ["data.format=orz", "eval.every_steps=0", "train.steps=3", f"train.num_prompts={number}"]
    done = yaoki(*fork, *more)
    assert "begins with the next epoch" in done.out, done.err
    done = yaoki("train", "--run", "new")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["checkpoints", "list", "nowhere"], 5, ["there is no run in nowhere"]),
        (["checkpoints", "verify", "nowhere"], 5, ["there is no run in nowhere"]),
        (["checkpoints", "verify", "RUN", "--at", 7], 5, ["no checkpoint of step 7", "of steps 1, 2"]),
        (["checkpoints", "diff", "RUN", 1, 7], 5, ["no checkpoint of step 7"]),
        (["checkpoints", "prune", "nowhere"], 5, ["there is no run in nowhere"]),
        (["checkpoints", "pin", "RUN", "paper", 7], 5, ["no checkpoint of step 7"]),
        (["checkpoints", "pin", "RUN", "a/b", 1], 2, ["'a/b' cannot be the name of a pin"]),
        (["checkpoints", "unpin", "RUN", "paper"], 5, ["nothing is pinned as 'paper'"]),
        (["fork", "nowhere", "--at", 1, "--to", "new"], 5, ["there is no run in nowhere"]),
        (["fork", "RUN", "--at", 1, "--to", "RUN"], 3, ["already exists"]),
        (["fork", "RUN", "--at", 1, "--to", "new", "algorithm.name=grpo"], 3, ["cannot go on with these"]),
        (["fork", "RUN", "--at", 1, "--to", "new", "train.step=1"], 2, ["did you mean train.steps?"]),
        (["rollouts", "nowhere", "--step", 1], 5, ["there is no run in nowhere"]),
        (["rollouts", "RUN", "--step", 9], 5, ["nothing of step 9"]),
        (["mine", "nowhere", "--max-correct", 1, "--to", "x"], 5, ["there is no run in nowhere"]),
        (["mine", "RUN", "--max-correct", 4, "--to", "x"], 2, ["--max-correct is 4, but a group has 4"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_refusals(words: list[object], code: int, parts: list[str], yaoki: Yaoki, copied: Path) -> None:
    before = sorted(copied.rglob("*"))
    done = yaoki(*(copied if word == "RUN" else word for word in words))
    assert_refused(done, code, *parts)
    assert sorted(copied.rglob("*")) == before
    assert not Path("new").exists()


def test_a_prune_of_a_run_in_use_is_refused(yaoki: Yaoki, copied: Path) -> None:
    from yaoki.runs.directory import RunDirectory

    with RunDirectory(copied).lock():
        assert_refused(yaoki("checkpoints", "prune", copied), 3, "is in use by process")


def test_a_run_without_checkpoints(yaoki: Yaoki, copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    assert yaoki("checkpoints", "list", copied).out == "no checkpoints yet\n"
    assert of_json(yaoki("checkpoints", "list", copied, "--json")) == []
    assert_refused(yaoki("checkpoints", "verify", copied), 5, "has no checkpoint yet")
    assert yaoki("checkpoints", "prune", copied, "--dry-run").out == "no checkpoints yet\n"
