"""What `plan` says, compared with real models, checkpoints, caches and the tensors that autograd saves."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import profile
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3MoeConfig,
    T5GemmaConfig,
    ViTConfig,
)

from tests.support.attempts import STEPS
from yaoki.checkpoint.layout import directory_name
from yaoki.commands.footprint import Plan
from yaoki.commands.plan import plan_run, slab_columns
from yaoki.config.load import load_config
from yaoki.errors import NothingThereError, UsageError
from yaoki.models.builtin import tiny_config, tiny_tokenizer
from yaoki.models.policy import token_logprobs
from yaoki.rl.losses import entropy_from_logits
from yaoki.rollout.engines.kv_cache import SlabLayer
from yaoki.runs.directory import RunDirectory

SMALL = {
    "vocab_size": 90,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
}


def saved_config(folder: Path, config: PreTrainedConfig) -> str:
    config.save_pretrained(folder)
    return str(folder)


def plan_of(*overrides: str, num_workers: int = 1) -> Plan:
    config = load_config(None, ['data.files=["tasks.json"]', *overrides])
    return plan_run(config, num_workers=num_workers, disk_gb_per_s=2.0)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
    ],
)
def test_known_models_have_the_published_size(name: str, num_parameters: int) -> None:
    assert plan_of(f"policy.init_from={name}").policy.num_parameters == num_parameters


def test_the_built_in_model_is_known_as_it_is(tmp_path: Path) -> None:
    real = plan_of(f"policy.init_from={saved_config(tmp_path, tiny_config(tiny_tokenizer()))}")
    for name in ("builtin:tiny", "builtin:tiny-random"):
        known = plan_of(f"policy.init_from={name}", "data.files=[]", "data.family=arithmetic")
        assert known.memory == real.memory
        assert known.checkpoint_bytes == real.checkpoint_bytes


def test_a_folder_comes_before_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_config(tmp_path / "Qwen/Qwen2.5-0.5B", Qwen2Config(**SMALL))
    monkeypatch.chdir(tmp_path)
    assert plan_of("policy.init_from=Qwen/Qwen2.5-0.5B").policy.num_parameters < 100_000


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=20),
        Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=12),
    ],
    ids=lambda config: config.model_type,
)
def test_any_architecture_of_transformers(config: PreTrainedConfig, tmp_path: Path) -> None:
    """Also one whose layers differ: two of the largest are gathered at once."""
    plan = plan_of(f"policy.init_from={saved_config(tmp_path, config)}", num_workers=2)
    model = AutoModelForCausalLM.from_config(config)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    total = sum(p.numel() for p in model.parameters())
    assert plan.policy.num_parameters == total
    assert plan.critic is not None
    assert (
        plan.critic.num_parameters == sum(p.numel() for p in model.model.parameters()) + SMALL["hidden_size"]
    )
    assert plan.memory.gathered_bytes == 2 * 4 * (total - sum(sizes) + 2 * max(sizes))


def test_models_that_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError, match="'Qwen/Unknown' is not known") as caught:
        plan_of("policy.init_from=Qwen/Unknown")
    assert "policy.init_from=FOLDER" in (caught.value.hint or "")
    good = Qwen2Config(**SMALL).to_dict()
    for content, error, complaint in [
        ("{", NothingThereError, "not a valid JSON"),
        ("[]", NothingThereError, "no usable model"),
        (json.dumps(good | {"model_type": "nope"}), NothingThereError, "model type `nope`"),
        (json.dumps(good | {"hidden_size": None}), NothingThereError, "'hidden_size' expected int"),
        (json.dumps(good | {"num_attention_heads": 0}), UsageError, "num_attention_heads is 0"),
        (json.dumps(GPT2Config().to_dict()), UsageError, "'gpt2' whose intermediate_size is None"),
        (json.dumps(ViTConfig().to_dict()), UsageError, "'vit' whose vocab_size is None"),
        (json.dumps(T5GemmaConfig().to_dict()), UsageError, "cannot be built"),
    ]:
        (tmp_path / "config.json").write_text(content, "utf-8")
        with pytest.raises(error, match=complaint):
            plan_of(f"policy.init_from={tmp_path}")


def test_a_checkpoint_is_as_large_as_it_is(finished: Path) -> None:
    run = RunDirectory(finished)
    checkpoint = run.checkpoints / directory_name(STEPS)
    files = list(checkpoint.glob("*.safetensors"))
    assert len(files) == len(("params", "optim")) * len(("policy", "critic")) + len(("reference",))
    plan = plan_run(run.stored_config(), num_workers=1, disk_gb_per_s=2.0)
    assert plan.checkpoint_bytes == sum(file.stat().st_size for file in files)
    assert plan.checkpoint_s == plan.checkpoint_bytes / 2e9


def test_without_critic_and_with_reference() -> None:
    model = "policy.init_from=builtin:tiny-random"
    ppo, grpo = plan_of(model), plan_of(model, "algorithm.name=grpo")
    measured = plan_of(model, "kl.measure=true")
    assert grpo.critic is None
    assert ppo.critic is not None
    share = 4 * ppo.policy.num_parameters
    assert grpo.memory.weights_bytes == share
    assert ppo.memory.weights_bytes == share + 4 * ppo.critic.num_parameters
    assert ppo.memory.reference_bytes == 0
    assert measured.memory.reference_bytes == share
    assert measured.checkpoint_bytes - ppo.checkpoint_bytes == pytest.approx(share, abs=8192)


def test_workers_divide_the_state_and_not_the_engine() -> None:
    overrides = ["policy.init_from=Qwen/Qwen2.5-7B", "kl.measure=true", "train.precision=bfloat16"]
    one, many = plan_of(*overrides).memory, plan_of(*overrides, num_workers=37).memory
    for name in ("weights_bytes", "moments_bytes", "reference_bytes", "gradients_bytes"):
        assert getattr(many, name) == math.ceil(getattr(one, name) / 37)
    for name in ("engine_weights_bytes", "cache_bytes", "activations_bytes", "gathered_bytes"):
        assert getattr(many, name) == getattr(one, name)
    parameters = 7_615_616_512 + 7_070_622_720
    assert one.weights_bytes + one.moments_bytes == 12 * parameters
    always = one.learner_bytes + one.engine_weights_bytes
    assert one.peak_bytes == always + max(one.cache_bytes, one.update_bytes)


def test_vllm_holds_a_slice_in_what_is_computed_in_and_sleeps_while_training() -> None:
    size = ["policy.init_from=Qwen/Qwen2.5-1.5B", "data.max_prompt_tokens=100", "engine.max_new_tokens=900"]
    vllm = [*size, "engine.type=vllm", "engine.batch_size=3", "train.precision=bfloat16"]
    whole = plan_of(*vllm, num_workers=4).memory
    assert whole.engine_weights_bytes == 2 * 1_543_714_304
    assert whole.cache_bytes == 3 * 1000 * 28 * 2 * 2 * 128 * 2
    sliced = plan_of(*vllm, "engine.tensor_parallel=4", num_workers=4).memory
    assert 4 * sliced.engine_weights_bytes == whole.engine_weights_bytes
    assert 2 * sliced.cache_bytes == whole.cache_bytes  # there are two key heads, so each is on two workers
    assert whole.generating_bytes == whole.learner_bytes + whole.engine_weights_bytes + whole.cache_bytes
    assert whole.updating_bytes == whole.learner_bytes + whole.update_bytes
    assert whole.pushing_bytes == whole.learner_bytes + whole.engine_weights_bytes


def test_a_learner_that_offloads_makes_room_for_the_engine() -> None:
    memory = plan_of(
        "policy.init_from=Qwen/Qwen2.5-0.5B", "train.offload=true", "train.precision=bfloat16"
    ).memory
    assert memory.generating_bytes == memory.engine_weights_bytes + memory.cache_bytes
    assert memory.updating_bytes == memory.learner_bytes + memory.engine_weights_bytes + memory.update_bytes


def test_workers_that_cannot_share_engines() -> None:
    size = ["policy.init_from=Qwen/Qwen2.5-0.5B", "engine.type=vllm", "engine.tensor_parallel=2"]
    with pytest.raises(UsageError, match="does not divide 3 workers"):
        plan_of(*size, num_workers=3)
    plan_of(*size, num_workers=4)


def test_an_algorithm_that_cannot_work() -> None:
    with pytest.raises(UsageError, match="there is no algorithm 'gpro'"):
        plan_of("policy.init_from=Qwen/Qwen2.5-0.5B", "algorithm.name=gpro")
    with pytest.raises(UsageError, match="grpo compares within a group"):
        plan_of("policy.init_from=Qwen/Qwen2.5-0.5B", "algorithm.name=grpo", "train.group_size=1")


def test_rank_0_loads_one_network_at_a_time() -> None:
    size = "policy.init_from=Qwen/Qwen2.5-0.5B"
    assert plan_of(size, num_workers=8).start_host_bytes == 4 * 494_033_664
    assert plan_of(size, "algorithm.name=grpo").start_host_bytes == 4 * 494_032_768


def test_what_is_gathered() -> None:
    model = "policy.init_from=Qwen/Qwen2.5-0.5B"
    assert plan_of(model).memory.gathered_bytes == 0
    full = plan_of(model, num_workers=2).memory.gathered_bytes
    outside = 151936 * 896 + 896
    assert full == 2 * 4 * (outside + 2 * (494_032_768 - outside) // 24)
    assert plan_of(model, "train.precision=bfloat16").memory.gathered_bytes == full / 2


def test_tokens_and_journal() -> None:
    plan = plan_of("policy.init_from=builtin:tiny-random", "train.num_prompts=3", "engine.max_new_tokens=50")
    assert (plan.num_completions, plan.max_tokens, plan.max_journal_bytes) == (192, 9600, 67200 + 8000)


@given(num_first=st.integers(1, 200), num_more=st.integers(0, 500))
def test_slabs_grow_as_those_of_the_engine(num_first: int, num_more: int) -> None:
    columns = torch.zeros(1, 1, num_first, 1)
    layer = SlabLayer()
    layer.update(columns, columns)
    layer.batch_select_indices(torch.tensor([0]))
    for _ in range(num_more):
        layer.update(columns[:, :, :1], columns[:, :, :1])
    assert layer.keys.untyped_storage().nbytes() == 4 * slab_columns(num_first, num_more)


def test_the_cache_is_that_of_the_engine(tmp_path: Path) -> None:
    """Two layers of keys and values, for 5 of 192 completions, in the slabs of the test above."""
    source = saved_config(tmp_path, Qwen2Config(**SMALL | {"num_hidden_layers": 2}))
    plan = plan_of(
        f"policy.init_from={source}",
        "train.num_prompts=3",
        "engine.batch_size=5",
        "engine.max_new_tokens=65",
        "data.max_prompt_tokens=30",
    )
    assert slab_columns(30, 64) == 94, "the last token is not appended: one more would not fit"
    assert plan.memory.cache_bytes == 2 * 2 * 5 * 94 * 24 * 4
    everything = plan_of(f"policy.init_from={source}", "train.num_prompts=1", "engine.batch_size=500")
    assert everything.memory.cache_bytes == 2 * 2 * 64 * slab_columns(2048, 7999) * 24 * 4


def bytes_saved_for_backward(model: PreTrainedModel, ids: torch.Tensor) -> int:
    """Storages that autograd keeps of the policy's forward pass, the weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = token_logprobs(model, ids, 1, 1.0)
    del result
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["kept", "computed-again"])
def test_activations_of_a_layer(precision: str, is_checkpointed: bool, tmp_path: Path) -> None:
    """The difference between two depths, so that what is not in the layers drops out."""
    saved, planned = [], []
    for num_layers in (2, 6):
        config = Qwen2Config(**SMALL | {"num_hidden_layers": num_layers, "hidden_size": 96})
        model = Qwen2ForCausalLM(config).to(getattr(torch, precision)).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.zeros(4, 64, dtype=torch.int64)
        saved.append(bytes_saved_for_backward(model, ids))
        plan = plan_of(
            f"policy.init_from={saved_config(tmp_path / str(num_layers), config)}",
            f"train.precision={precision}",
            f"train.activation_checkpointing={str(is_checkpointed).lower()}",
            "train.micro_batch_tokens=256",
            "data.max_prompt_tokens=32",
            "engine.max_new_tokens=32",
        )
        planned.append(plan.memory.activations_bytes)
    assert planned[1] - planned[0] == pytest.approx(saved[1] - saved[0], rel=0.02)


def test_logits_at_the_peak(tmp_path: Path) -> None:
    """A model that is nearly all vocabulary, from the forward pass to the end of the backward pass."""
    config = Qwen2Config(**SMALL | {"num_hidden_layers": 1, "vocab_size": 20_000}, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(config).train()
    ids = torch.zeros(4, 64, dtype=torch.int64)
    with profile(profile_memory=True) as profiled:
        logprobs, logits = token_logprobs(model, ids, 1, 1.0)
        with torch.no_grad():
            entropy_from_logits(logits)
        logprobs.sum().backward()
    alive, peak = 0, 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    plan = plan_of(
        f"policy.init_from={saved_config(tmp_path, config)}",
        "train.micro_batch_tokens=256",
        "data.max_prompt_tokens=32",
        "engine.max_new_tokens=32",
    )
    assert plan.memory.activations_bytes == pytest.approx(peak, rel=0.05)


def test_a_row_longer_than_the_budget_counts() -> None:
    model = "policy.init_from=builtin:tiny-random"
    lengths = ["data.max_prompt_tokens=100", "engine.max_new_tokens=900"]
    short, long = (
        plan_of(model, *lengths, f"train.micro_batch_tokens={budget}").memory for budget in (10, 2000)
    )
    assert 2 * short.activations_bytes == long.activations_bytes
    few = plan_of(model, *lengths, "train.num_prompts=1", "train.group_size=1").memory
    assert few.activations_bytes == short.activations_bytes


def test_a_mini_batch_smaller_than_the_budget_counts() -> None:
    grpo = [
        "policy.init_from=builtin:tiny-random",
        "algorithm.name=grpo",
        "train.micro_batch_tokens=1000000",
    ]
    lengths = ["data.max_prompt_tokens=10", "engine.max_new_tokens=90", "train.num_prompts=2"]
    whole, third, full = (
        plan_of(*grpo, *lengths, *overrides).memory.activations_bytes
        for overrides in ([], ["policy.num_mini_batches=3"], ["train.micro_batch_tokens=6400"])
    )
    assert whole == 2 * full
    assert third == whole * 43 // 128, "43 of 128 completions"


def test_the_larger_update_counts() -> None:
    """With very small mini-batches for the policy it is the critic's, which has no logits."""
    ppo = ["policy.init_from=builtin:tiny-random", "data.max_prompt_tokens=10", "engine.max_new_tokens=90"]
    ppo += ["policy.num_mini_batches=8192", "critic.num_mini_batches=1", "train.micro_batch_tokens=6400"]
    per_token = 4 * 3 * (6 * 128 + 2 * 128 + 2 * 128 + 4 * 512)
    assert plan_of(*ppo).memory.activations_bytes == 6400 * per_token
