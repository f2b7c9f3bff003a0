"""The recipes that come with Yaoki: they load, say what they are for, and fit where they say they do."""

import re
from pathlib import Path

import pytest

from yaoki.commands.plan import plan_run
from yaoki.config.load import load_config
from yaoki.config.schema import Config
from yaoki.rl.algorithm import algorithm_of

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
HARDWARE = re.compile(r"Hardware: (\d+) GPUs? of (\d+) GB")
MAX_LINES = 45
CUDA_GB = 3
"""What CUDA itself and the gaps between tensors may take."""


def comment_of(path: Path) -> str:
    """The lines at the top."""
    lines = path.read_text("utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("# ") for line in lines[:end])


def config_of(path: Path) -> Config:
    """For annealing with the base model, as the one that it starts from is still to be trained."""
    base = [f"{network}.init_from=Qwen/Qwen2.5-32B" for network in ("policy", "critic")]
    return load_config(path, base if path.stem.endswith("anneal") else [])


def test_those_that_people_look_for_are_there() -> None:
    names = {path.stem for path in RECIPES}
    sizes = ("0.5b_1gpu", "0.5b", "1.5b", "7b", "7b_grpo", "32b", "32b_anneal")
    assert names == {"tiny", "tiny_grpo", *(f"orz_{size}" for size in sizes)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_short_and_says_what_it_is_for(path: Path) -> None:
    algorithm_of(load_config(path))
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES
    assert re.search(r"\bGPUs?\b|\bcore\b", comment_of(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_where_it_says(path: Path) -> None:
    stated = HARDWARE.search(comment_of(path))
    if path.stem.startswith("tiny"):
        assert stated is None
        return
    assert stated is not None
    num_gpus, gpu_gb = map(int, stated.groups())
    plan = plan_run(config_of(path), num_workers=num_gpus, disk_gb_per_s=1.0)
    assert plan.memory.peak_bytes + CUDA_GB * 1e9 <= gpu_gb * 1e9


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem.startswith("orz")], ids=lambda path: path.stem
)
def test_the_hyperparameters_are_those_of_open_reasoner_zero(path: Path) -> None:
    """Source: its config.py and playground scripts, and Hu et al. 2025 (arXiv 2503.24290), appendix B."""
    config = load_config(path)
    assert (config.train.num_prompts, config.train.group_size) == (128, 64)
    assert (config.algorithm.gamma, config.algorithm.gae_lambda, config.algorithm.clip_eps) == (1, 1, 0.2)
    assert (config.policy.lr, config.critic.lr) == (1e-6, 5e-6)
    assert (config.policy.num_mini_batches, config.critic.num_mini_batches) == (1, 12)
    assert (config.policy.betas, config.policy.weight_decay) == ((0.9, 0.95), 0)
    assert (config.engine.max_new_tokens, config.data.max_prompt_tokens) == (8000, 2048)
    assert (config.engine.temperature, config.engine.top_p) == (1, 1)
    assert config.engine.stop == ("User:", "Human:", "Assistant:", "</answer>")
    assert not config.kl.needs_reference
    assert config.eval.every_steps == 10
    assert config.train.precision == "bfloat16"
    assert config.train.activation_checkpointing
    if not path.stem.endswith("anneal"):
        assert (config.policy.schedule, config.policy.warmup_steps) == ("constant", 50)


ROW = re.compile(
    r"^\| \[`(\S+)\.toml`\].*\| (\d+) x (\d+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", re.MULTILINE
)


def test_the_table_holds_what_plan_says() -> None:
    text = (RECIPES[0].parent / "README.md").read_text("utf-8")
    rows = ROW.findall(text)
    assert [name for name, *_ in rows] == sorted(
        (path.stem for path in RECIPES if path.stem.startswith("orz")),
        key=lambda name: text.index(f"`{name}."),
    )
    for name, num_gpus, gpu_gb, peak_gb, checkpoint_gb in rows:
        path = RECIPES[0].parent / f"{name}.toml"
        plan = plan_run(config_of(path), num_workers=int(num_gpus), disk_gb_per_s=1.0)
        assert f"{plan.memory.peak_bytes / 1e9:.1f}" == peak_gb
        assert f"{plan.checkpoint_bytes / 1e9:.1f}" == checkpoint_gb
        assert f"{num_gpus} GPUs of {gpu_gb} GB" in comment_of(path).replace("1 GPU of", "1 GPUs of")
