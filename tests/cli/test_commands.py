"""`status`, `export`, `eval`: what they say of a run and what they write."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from yaoki import __version__
from yaoki.checkpoint.io.reader import load
from yaoki.commands.export import export_run
from yaoki.models.critic import build_critic
from yaoki.models.policy import build_causal_lm
from yaoki.runs.directory import RunDirectory

from .commands import REPOSITORY, Done, Trained

Yaoki = Callable[..., Done]
AIME = REPOSITORY.parent / "shared" / "data" / "aime2024.json"
IDS = torch.tensor([[5, 6, 7, 8, 250, 260]])


def test_status_for_people(yaoki: Yaoki, trained: Trained) -> None:
    done = yaoki("status", trained.run)
    assert done.code == 0
    assert done.err == ""
    for part in (
        "step         2 of 2",
        "held-out accuracy",
        "1  finished",
        "step-00000002  ",
        "resume       nothing to do: the run is finished; ",
        "with more train.steps from step-00000002, grade exact",
    ):
        assert part in done.out
    assert "in use by" not in done.out


def test_status_for_scripts(yaoki: Yaoki, trained: Trained) -> None:
    found = json.loads(yaoki("status", trained.run, "--json").out)
    assert (found["step"], found["steps"], found["in_use_by"]) == (2, 2, None)
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["finished"]
    assert [checkpoint["step"] for checkpoint in found["checkpoints"]] == [2, 1]
    assert found["resume"] == {
        "possible": True,
        "finished": True,
        "grade": "exact",
        "step": 2,
        "checkpoint": "step-00000002",
        "num_workers": 1,
        "read_all": False,
        "num_replayed_steps": 0,
        "num_reused_rollouts": 0,
        "refused": [],
        "reasons": [],
    }


def test_status_says_what_a_resume_would_pass_over(yaoki: Yaoki, copied: Path) -> None:
    (copied / "checkpoints" / "step-00000002" / "state.json").write_bytes(b"")
    found = json.loads(yaoki("status", copied, "--json").out)
    assert found["resume"]["step"] == 1
    assert "state.json" in found["resume"]["refused"][0]
    assert "not used: step-00000002: state.json" in yaoki("status", copied).out


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["status", "RUN"],
        ["train", "--help"],
        ["checkpoints", "list", "RUN"],
        ["checkpoints", "verify", "RUN"],
        ["checkpoints", "prune", "RUN", "--dry-run"],
        ["fork", "RUN", "--at", "1", "--to", "NEW"],
        ["rollouts", "RUN", "--step", "2"],
    ],
    ids=" ".join,
)
def test_what_answers_at_once_imports_no_torch(words: list[str], trained: Trained, tmp_path: Path) -> None:
    places = {"RUN": str(trained.run), "NEW": str(tmp_path / "new")}
    words = [places.get(word, word) for word in words]
    code = "\n".join(
        [
            f"import sys; sys.argv = ['yaoki', *{words!r}]",
            "from yaoki.cli.main import main",
            "try: main()",
            "except SystemExit: pass",
            "print({'torch', 'transformers'} & sys.modules.keys(), file=sys.stderr)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=True,
    )
    assert done.stderr == "set()\n"
    assert "\x1b" not in done.stdout
    expected = {
        "--help": "train",
        "--version": f"yaoki {__version__}",
        "status": "attempts",
        "train": "--run",
        "checkpoints": "step-00000002",
        "fork": "starts from step 1",
        "rollouts": "step 2, prompt 0, sample 0",
    }
    assert expected[words[0]] in done.stdout


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "deeper" / "folder"
    assert export_run(RunDirectory(trained.run), None, target).step == 2
    return target


def test_exported_policy_is_the_checkpoints(exported: Path, trained: Trained) -> None:
    folder = exported / "policy"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    saved = load(trained.run / "checkpoints" / "step-00000002").parts["policy.params"].tensors
    own = build_causal_lm(str(trained.run / "model" / "policy"), trust_remote_code=False, dropout=0.0).eval()
    own.load_state_dict(dict(saved))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, own(IDS).logits)
    first = load(trained.run / "checkpoints" / "step-00000001").parts["policy.params"].tensors
    assert any(not torch.equal(first[name], saved[name]) for name in saved), "steps differ"


def test_exported_critic_is_the_checkpoints(exported: Path, trained: Trained) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(exported / "critic").eval()
    saved = load(trained.run / "checkpoints" / "step-00000002").parts["critic.params"].tensors
    own = build_critic(str(trained.run / "model" / "critic"), trust_remote_code=False, dropout=0.0).eval()
    own.load_state_dict(dict(saved))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, own(IDS).logits)
    assert model.num_labels == 1


def test_exported_tokenizer_is_the_runs(exported: Path, trained: Trained) -> None:
    text = "12+7=<think> so \\boxed{19} </answer>"
    own = AutoTokenizer.from_pretrained(trained.run / "model" / "policy")
    for name in ("policy", "critic"):
        tokenizer = AutoTokenizer.from_pretrained(exported / name)
        assert tokenizer(text)["input_ids"] == own(text)["input_ids"]
        assert tokenizer.eos_token_id == own.eos_token_id


def test_an_export_can_be_read_by_others(exported: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for folder in (exported, exported / "policy", exported / "critic"):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
    assert [path.name for path in exported.parent.iterdir()] == ["folder"], "nothing is left behind"


def test_an_older_step_is_exported_on_request(yaoki: Yaoki, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = yaoki("export", trained.run, "--at", 1, "--to", "empty")
    assert done.out.splitlines() == ["empty/critic (step 1)", "empty/policy (step 1)"]
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "empty" / "policy").state_dict()
    saved = load(trained.run / "checkpoints" / "step-00000001").parts["policy.params"].tensors
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items())


def test_eval_of_a_run(yaoki: Yaoki, trained: Trained, tmp_path: Path) -> None:
    done = yaoki("eval", trained.run, "--samples", 4, "--json", "--out", "found/completions.parquet")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["step"], found["num_tasks"], found["num_samples"]) == (2, 8, 4)
    assert found["low"] <= found["pass_at_1"] <= found["high"]
    assert found["completions"] == "found/completions.parquet"

    rows = parquet.read_table(tmp_path / "found" / "completions.parquet").to_pylist()
    assert len(rows) == 32
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 8
    assert sum(row["reward"] for row in rows) / 32 == pytest.approx(found["pass_at_1"])
    solved = [max(row["reward"] for row in rows[start : start + 4]) for start in range(0, 32, 4)]
    assert sum(solved) / 8 == pytest.approx(found["pass_at_k"]["4"])
    assert 0 < found["pass_at_1"] < 1
    for row in rows:
        assert len(row["token_ids"]) == len(row["logprobs"]) <= 8
        assert row["reward"] == (row["verdict"] == "correct")
        assert row["source"] == "arithmetic"
        assert all(row[name] for name in ("task_uid", "problem", "answer", "prompt_ids"))
        assert row["finish_reason"] in ("stop", "eos", "length")
        assert row["reward"] == 0 or row["finish_reason"] != "length"


def test_eval_again_gives_the_same_and_another_step_another(yaoki: Yaoki, trained: Trained) -> None:
    summary = json.loads((trained.run / "summary.json").read_text())
    done = yaoki("eval", trained.run, "--out", "a.parquet")
    assert f"pass@1 {summary['accuracy_after']:.3f} (95 % interval" in done.out
    assert "8 tasks x 1 samples" in done.out
    yaoki("eval", trained.run, "--out", "b.parquet")
    assert parquet.read_table("a.parquet").equals(parquet.read_table("b.parquet"))
    other = yaoki("eval", trained.run, "--at", 1)
    assert "completions: evals/tiny-step-00000001.parquet" in other.out
    assert not parquet.read_table("evals/tiny-step-00000001.parquet").equals(parquet.read_table("a.parquet"))


@pytest.mark.skipif(not AIME.exists(), reason="no real data here")
def test_eval_of_a_model_on_real_problems(yaoki: Yaoki, exported: Path) -> None:
    settings = [
        "engine.max_new_tokens=16",
        "data.template=short",
        "data.verifier=tests.support.judge:judge_by_hash",
        "run.num_threads=1",
        "run.device=cpu",
    ]
    done = yaoki("eval", exported / "policy", *settings, "--data", AIME, "--samples", 2, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["step"], found["num_tasks"], found["num_samples"]) == (None, 30, 2)
    rows = parquet.read_table(found["completions"]).to_pylist()
    assert len(rows) == 60
    assert sum(row["reward"] for row in rows) / 60 == pytest.approx(found["pass_at_1"])
    assert {row["source"] for row in rows} == {"aime2024.json"}
    assert rows[0]["answer"] == "73"
    assert found["low"] <= found["pass_at_1"] < found["high"]
