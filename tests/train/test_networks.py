"""The networks of an attempt: materialised on rank 0 alone, the same bits on all, errors raised on all."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as RichConsole
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.support.allocations import allocations
from tests.support.attempts import STEPS, config_of
from tests.support.harness import assert_same_run
from tests.support.ranks import Failure, on_ranks, outcomes
from yaoki.config.schema import Config
from yaoki.errors import NothingThereError, YaokiError
from yaoki.learner import shard
from yaoki.learner.shard import full_tensor
from yaoki.models.builtin import tiny_tokenizer
from yaoki.models.critic import load_critic
from yaoki.models.huggingface import export_model
from yaoki.models.policy import load_causal_lm, model_logprobs
from yaoki.ranks.world import World, alone
from yaoki.runs.directory import RunDirectory
from yaoki.seeding import Purpose, seed
from yaoki.train import engine as engine_room
from yaoki.train.console import Console
from yaoki.train.engine import build_engine
from yaoki.train.networks import Models, build_learner, empty_models, start_models
from yaoki.train.session import train
from yaoki.train.weight_sync import WeightSync, tolerance

CPU = torch.device("cpu")


def model_folder(path: Path, *, tied: bool, dtype: str = "float32") -> Path:
    """Numbers of rows that 3 does not divide; random weights."""
    tokenizer = tiny_tokenizer()
    shape = Qwen2Config(
        vocab_size=271,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=49,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Qwen2ForCausalLM(shape)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def critic_folder(policy: Path, path: Path) -> Path:
    """A critic with a head of its own, as an export makes it."""
    critic = load_critic(str(policy), trust_remote_code=False, dropout=0.0, head_seed=99)
    weights = {name: tensor + 0.01 for name, tensor in critic.state_dict().items()}
    export_model(critic, weights, tiny_tokenizer(), path)
    return path


def start(config: Config, run: Path, world: World) -> Models:
    with Console(0, RichConsole(file=io.StringIO())) as console:
        return start_models(config, RunDirectory(run), CPU, console, lambda: None, world)


def gathered(model: PreTrainedModel | None) -> dict[str, torch.Tensor]:
    assert model is not None
    return {name: full_tensor(tensor).clone() for name, tensor in model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: PreTrainedModel) -> None:
    tensors = expected.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("has_critic", [True, False], ids=["own critic", "fresh head"])
@pytest.mark.parametrize(("tied", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_every_rank_starts_from_the_same_bits(
    tied: bool, dtype: str, has_critic: bool, size: int, tmp_path: Path
) -> None:
    policy = model_folder(tmp_path / "policy", tied=tied, dtype=dtype)
    critic = critic_folder(policy, tmp_path / "critic") if has_critic else policy
    config = config_of(f"policy.init_from={policy}", f"critic.init_from={critic}")

    def networks(world: World) -> Any:
        models = start(config, tmp_path / f"run-{size}", world)
        return [gathered(model) for model in (models.policy, models.critic, models.reference)]

    first_policy = load_causal_lm(str(policy), trust_remote_code=False, dropout=0.0)
    head_seed = seed(config.train.seed, Purpose.VALUE_HEAD)
    first_critic = load_critic(str(critic), trust_remote_code=False, dropout=0.0, head_seed=head_seed)
    for found in [networks(alone())] if size == 1 else on_ranks(size, tmp_path, networks):
        for weights, expected in zip(found, (first_policy, first_critic, first_policy), strict=True):
            assert_same(weights, expected)


def test_the_engine_has_the_policy_after_the_first_push(tmp_path: Path) -> None:
    policy = model_folder(tmp_path / "policy", tied=True)
    config = config_of(f"policy.init_from={policy}")

    def push(world: World) -> Any:
        models = start(config, tmp_path / "run", world)
        engine = build_engine(config, str(tmp_path / "run" / "model" / "policy"), models.tokenizer, CPU)
        with pytest.raises(YaokiError, match="no weights yet"):
            engine.logprobs((1, 2, 3))
        sync = WeightSync(engine, build_learner(config, models, world), (1, 2, 3), tolerance("float32"))
        sync.verify(0, sync.push(0))
        return engine.logprobs((1, 2, 3))

    expected = load_causal_lm(str(policy), trust_remote_code=False, dropout=0.0)
    for found in on_ranks(2, tmp_path, push):
        assert found == model_logprobs(expected, (1, 2, 3))


def test_the_stored_architecture_is_that_of_the_loaded_models(tmp_path: Path) -> None:
    """What is trained on depends on these files: the digest of the data covers them."""
    policy = model_folder(tmp_path / "policy", tied=False, dtype="bfloat16")
    start(config_of(f"policy.init_from={policy}"), tmp_path / "run", alone())
    loaded = load_causal_lm(str(policy), trust_remote_code=False, dropout=0.0)
    critic = load_critic(str(policy), trust_remote_code=False, dropout=0.0, head_seed=0)
    for name, model in (("policy", loaded), ("critic", critic)):
        model.config.save_pretrained(tmp_path / name)
        stored = RunDirectory(tmp_path / "run").model / name / "config.json"
        assert stored.read_bytes() == (tmp_path / name / "config.json").read_bytes()
    assert json.loads(stored.read_text())["dtype"] == "float32"


def test_the_first_rank_reads_one_network_at_a_time_and_the_others_none(tmp_path: Path) -> None:
    """In host memory; the engine has a copy of its own, which is not built here."""
    policy = model_folder(tmp_path / "policy", tied=False)
    config = config_of(f"policy.init_from={policy}")

    def taken(world: World) -> tuple[int, int]:
        with allocations() as found:
            start(config, tmp_path / "run", world)
        return found.largest, found.peak

    sizes = [
        4 * t.numel() for t in load_causal_lm(str(policy), trust_remote_code=False, dropout=0.0).parameters()
    ]
    (_, first), *others = on_ranks(3, tmp_path, taken)
    assert first < 2.3 * sum(sizes)  # a third of each of three networks, and one whole
    for largest, peak in others:
        assert largest <= max(sizes) / 3 + 4 * 32
        assert peak < 1.3 * sum(sizes)


def test_a_resume_reads_no_network_whole_on_any_rank(tmp_path: Path) -> None:
    config = config_of(f"policy.init_from={model_folder(tmp_path / 'policy', tied=False)}")
    start(config, tmp_path / "run", alone())

    def largest(world: World) -> int:
        with allocations() as taken:
            empty_models(config, RunDirectory(tmp_path / "run"), CPU, world)
        return taken.largest

    for found in on_ranks(3, tmp_path, largest):
        assert found <= 4 * 271 * 32 / 3 + 4 * 32


def with_garbage(path: Path, config: Config) -> Callable[[World], None]:
    """An attempt in which all memory that waits for weights is full of NaN."""

    def attempt(world: World) -> None:
        materialize = shard.materialize

        def materialize_garbage(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
            waiting = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
            weights = materialize(model, device).state_dict()
            for name in waiting:
                weights[name].fill_(torch.nan)
            return model

        shard.materialize = engine_room.materialize = materialize_garbage
        with Console(0, RichConsole(file=io.StringIO())) as console:
            train(RunDirectory(path), config, console, world)

    return attempt


@pytest.mark.parametrize("size", [1, 2])
def test_no_garbage_is_ever_computed_with(size: int, finished: Path, tmp_path: Path) -> None:
    """Neither at the start nor after a resume."""
    for num_steps in (2, STEPS):
        on_ranks(size, tmp_path, with_garbage(tmp_path / "run", config_of(f"train.steps={num_steps}")))
    if size == 1:
        assert_same_run(tmp_path / "run", finished, STEPS)


def lacking(policy: Path) -> None:
    tensors = load_file(policy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, policy / "model.safetensors", {"format": "pt"})


def gone(policy: Path) -> None:
    for file in policy.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "text"),
    [(lacking, "lacks weights: model.layers.1.mlp.up_proj.weight"), (gone, "no usable model")],
)
def test_what_the_first_rank_cannot_read_is_the_end_of_all(
    damage: Callable[[Path], None], text: str, tmp_path: Path
) -> None:
    policy = model_folder(tmp_path / "policy", tied=False)
    damage(policy)
    config = config_of(f"policy.init_from={policy}")
    ended = outcomes(3, tmp_path, lambda world: start(config, tmp_path / "run", world))
    assert len(ended) == 3
    for rank, failure in ended.items():
        assert isinstance(failure, Failure)
        assert text in failure.text
        assert ("worker 0: " in failure.text) is (rank > 0)
        assert "hint: " in failure.text


def test_alone_the_error_is_the_loaders(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError, match="no usable model"):
        start(config_of(f"policy.init_from={tmp_path / 'none'}"), tmp_path / "run", alone())
