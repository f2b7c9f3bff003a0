"""`yaoki plan` as a user types it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .commands import REPOSITORY, Done, Trained

ONE_GPU = REPOSITORY / "recipes" / "orz_0.5b_1gpu.toml"


def test_a_recipe_in_a_screenful(yaoki: Callable[..., Done]) -> None:
    done = yaoki("plan", ONE_GPU, "--disk-gb-per-s", "2")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) < 25
    assert lines[0] == "run         ppo on 1 worker"
    assert "494,032,768 parameters (Qwen/Qwen2.5-0.5B)" in lines[1]
    assert lines[3] == "checkpoint  11.9 GB, 6 s at 2 GB/s"
    assert "at most 65,536,000 a step, in 8,192 completions" in done.out
    assert "about" in done.out
    assert "reference" not in done.out, "there is none"
    assert "warning" not in done.out


def test_json_has_the_same_numbers_whole(yaoki: Callable[..., Done]) -> None:
    done = yaoki("plan", ONE_GPU, "--json", "--gpu-gb", "80", "kl.measure=true", "--workers", "4")
    found = json.loads(done.out)
    memory = found["memory"]
    assert found["num_workers"] == 4
    assert found["policy"] == {"source": "Qwen/Qwen2.5-0.5B", "num_parameters": 494032768}
    assert memory["reference_bytes"] == 494032768
    phases = ("generating_bytes", "pushing_bytes", "updating_bytes")
    assert memory["peak_bytes"] == max(memory[phase] for phase in phases)
    assert found["fits"] is True
    assert json.loads(yaoki("plan", ONE_GPU, "--json").out)["fits"] is None


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        ([], "a smaller engine.max_new_tokens"),
        (["train.micro_batch_tokens=20000"], "a smaller train.micro_batch_tokens, a smaller engine.max_new"),
        (["train.precision=float32"], "train.precision=bfloat16, a smaller engine.max_new_tokens"),
        (["train.activation_checkpointing=false"], "train.activation_checkpointing=true, a smaller engine"),
        (["engine.batch_size=500"], "a smaller engine.batch_size"),
        (["engine.max_new_tokens=100", "data.max_prompt_tokens=100"], "more workers"),
        (["--workers", "8", "train.offload=true", "engine.batch_size=500"], "a smaller engine.batch_size"),
        (
            [
                "policy.init_from=Qwen/Qwen2.5-32B",
                "--workers",
                "500",
                "engine.batch_size=1",
                "engine.type=vllm",
            ],
            "a larger engine.tensor_parallel",
        ),
        (
            ["policy.init_from=Qwen/Qwen2.5-32B", "--workers", "500", "engine.batch_size=1"],
            "engine.type=vllm",
        ),
    ],
    ids=["update", "budget", "precision", "checkpointing", "cache", "state", "rests", "vllm", "engine"],
)
def test_what_does_not_fit_is_said_with_what_helps(
    overrides: list[str], advice: str, yaoki: Callable[..., Done]
) -> None:
    words = ["plan", ONE_GPU, "train.micro_batch_tokens=1000", *overrides, "--gpu-gb", "9"]
    done = yaoki(*words)
    assert done.code == 0
    warning = done.out.splitlines()[-1]
    assert warning.startswith("warning: about ")
    assert "do not fit into 9 GB" in warning
    assert f"what helps most: {advice}" in warning
    assert json.loads(yaoki(*words, "--json").out)["fits"] is False


def test_grpo_has_no_critic(yaoki: Callable[..., Done]) -> None:
    done = yaoki("plan", ONE_GPU, "algorithm.name=grpo", "--workers", "3")
    assert done.out.startswith("run         grpo on 3 workers\n")
    assert "critic      none" in done.out


def test_an_unknown_model_is_an_error_with_a_hint(yaoki: Callable[..., Done]) -> None:
    done = yaoki("plan", ONE_GPU, "policy.init_from=Some/Model")
    assert done.code == 5
    assert "'Some/Model' is not known" in done.err
    assert "hint: name a folder that holds the model's config.json" in done.err


@pytest.mark.parametrize("option", [["--workers", "0"], ["--disk-gb-per-s", "0"]])
def test_options_out_of_bounds(option: list[str], yaoki: Callable[..., Done]) -> None:
    assert yaoki("plan", ONE_GPU, *option).code == 2


def test_it_is_right_about_a_run(trained: Trained, yaoki: Callable[..., Done]) -> None:
    """The same recipe and overrides gave checkpoints of this size."""
    checkpoint = max((trained.run / "checkpoints").glob("step-*"))
    real = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    plan = json.loads(yaoki("plan", trained.recipe, "policy.init_from=builtin:tiny-random", "--json").out)
    assert plan["checkpoint_bytes"] == real


def test_it_writes_nothing_and_opens_no_connection(tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import socket, sys",
            "socket.socket.connect = None",
            f"sys.argv = ['yaoki', 'plan', {str(ONE_GPU)!r}]",
            "from yaoki.cli.main import main; main()",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "at the peak" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_a_recipe(yaoki: Callable[..., Done]) -> None:
    done = yaoki("plan")
    assert (done.code, done.out) == (2, "")
    assert "no recipe given" in done.err


@pytest.mark.parametrize(("gpu_gb", "is_enough"), [("80", True), ("1.5", False)])
def test_what_vllm_may_take(yaoki: Callable[..., Done], gpu_gb: str, is_enough: bool) -> None:
    words = ["--gpu-gb", gpu_gb, "engine.type=vllm", "engine.gpu_memory_utilization=0.5"]
    out = yaoki("plan", ONE_GPU, *words).out
    line = next(line for line in out.splitlines() if line.startswith("vLLM may take"))
    assert line.startswith(f"vLLM may take {float(gpu_gb) / 2:g} GB of each GPU")
    assert line.endswith(": too little for its weights") != is_enough
