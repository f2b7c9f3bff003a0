"""The settings: ORZ's defaults, bounds, descriptions, and combinations that cannot work."""

import json
from typing import Any, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from yaoki.config.load import load_config, setting_names
from yaoki.config.schema import Config
from yaoki.errors import UsageError

ORZ = {
    "algorithm.name": "ppo",
    "train.num_prompts": 128,
    "train.group_size": 64,
    "algorithm.gamma": 1.0,
    "algorithm.gae_lambda": 1.0,
    "algorithm.clip_eps": 0.2,
    "algorithm.whiten_advantages": True,
    "train.update_epochs": 1,
    "train.freeze_policy_steps": 0,
    "algorithm.entropy_coef": 0.0,
    "data.template": "orz",
    "policy.lr": 1e-6,
    "critic.lr": 5e-6,
    "policy.num_mini_batches": 1,
    "critic.num_mini_batches": 12,
    "critic.value_clip": 0.2,
    "kl.coef": 0.0,
    "kl.refresh_reference_every_epoch": False,
    "engine.temperature": 1.0,
    "engine.top_p": 1.0,
    "engine.max_new_tokens": 8000,
    "engine.stop": ["</answer>"],
}
"""Open-Reasoner-Zero's values."""

ORZ_OPTIMIZER = {
    "betas": [0.9, 0.95],
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_steps": 50,
    "max_grad_norm": 1.0,
    "dropout": 0.0,
}
"""The same for policy and critic."""

OURS = {
    "run.device": "auto",
    "run.num_threads": 0,
    "run.deterministic": True,
    "run.max_seconds": 0.0,
    "run.peer_timeout_s": 600.0,
    "run.storage": "",
    "run.storage_every_s": 5.0,
    "run.show_samples_every": 20,
    "train.seed": 0,
    "train.steps": 1000,
    "algorithm.scale_by_std": True,
    "train.micro_batch_tokens": 16384,
    "train.offload": False,
    "algorithm.importance_cap": 0.0,
    "train.precision": "float32",
    "train.activation_checkpointing": False,
    "data.files": [],
    "data.format": "auto",
    "data.problem_column": "problem",
    "data.answer_column": "answer",
    "data.on_bad_row": "error",
    "data.family": "arithmetic",
    "data.tasks_per_epoch": 4096,
    "data.max_prompt_tokens": 2048,
    "data.verifier": "math",
    "data.verifier_workers": 1,
    "data.verifier_time_limit_s": 5.0,
    "policy.init_from": "builtin:tiny",
    "policy.trust_remote_code": False,
    "policy.eps": 1e-8,
    "policy.decay_steps": 0,
    "policy.min_lr": 0.0,
    "critic.init_from": "",
    "critic.eps": 1e-8,
    "critic.decay_steps": 0,
    "critic.min_lr": 0.0,
    "kl.use": "loss",
    "kl.estimator": "k3",
    "kl.controller": "fixed",
    "kl.target": 0.05,
    "kl.horizon": 10000.0,
    "kl.measure": False,
    "engine.type": "transformers",
    "engine.batch_size": 128,
    "engine.gpu_memory_utilization": 0.5,
    "engine.tensor_parallel": 1,
    "eval.every_steps": 10,
    "eval.files": [],
    "eval.num_tasks": 256,
    "eval.num_samples": 1,
    "checkpoint.every_steps": 10,
    "checkpoint.keep_last": 2,
    "checkpoint.keep_every": 0,
    "checkpoint.keep_best": 0,
    "checkpoint.on_overrun": "wait",
    "checkpoint.copy_memory_gb": 8.0,
    "train.on_nonfinite": "stop",
    "run.min_free_gb": 1.0,
    "journal.enabled": True,
    "journal.flush_seconds": 5.0,
    "journal.flush_rollouts": 64,
    "journal.keep": "needed",
    "resume.on_divergence": "stop",
}
"""What ORZ has no counterpart for, or leaves to its launcher."""

DEFAULTS = (
    ORZ
    | {
        f"{network}.{name}": value
        for network in ("policy", "critic")
        for name, value in ORZ_OPTIMIZER.items()
    }
    | OURS
)


def config(*overrides: str) -> Config:
    return load_config(None, ["data.family=arithmetic", *overrides])


def fields() -> dict[str, FieldInfo]:
    found = {}
    for section, info in Config.model_fields.items():
        kind: Any = info.annotation
        found |= {f"{section}.{name}": field for name, field in kind.model_fields.items()}
    return found


def test_every_default() -> None:
    found = {
        f"{section}.{name}": value
        for section, values in config().model_dump(mode="json").items()
        for name, value in values.items()
    }
    assert found == DEFAULTS


def test_a_recipe_needs_no_more_than_its_tasks() -> None:
    assert load_config(None, ["data.family=arithmetic"]) == Config.model_validate(
        {"data": {"family": "arithmetic"}}
    )
    with pytest.raises(UsageError, match=r"data\.files and data\.family"):
        load_config(None)


def test_setting_names_are_all_fields_in_order() -> None:
    assert setting_names() == list(fields())
    assert setting_names()[:2] == ["run.device", "run.num_threads"]


@pytest.mark.parametrize("name", list(fields()))
def test_every_field_says_what_it_is(name: str) -> None:
    description = fields()[name].description or ""
    assert len(description) > 10
    assert description.endswith(".")


def test_every_section_says_what_it_is() -> None:
    for info in Config.model_fields.values():
        kind: Any = info.annotation
        assert kind.__doc__


def number_bounds(annotation: Any, metadata: list[Any]) -> list[bool]:
    """Of each number in a type, whether it has a lower bound."""
    if annotation in (int, float):
        return [any(isinstance(m, annotated_types.Ge | annotated_types.Gt) for m in metadata)]
    if hasattr(annotation, "__metadata__"):
        inner = [part for info in annotation.__metadata__ for part in getattr(info, "metadata", [info])]
        return number_bounds(annotation.__origin__, inner)
    if get_origin(annotation) is tuple:
        return [bound for part in get_args(annotation) for bound in number_bounds(part, [])]
    return []


def test_every_number_has_a_bound() -> None:
    bounds = {name: number_bounds(field.annotation, field.metadata) for name, field in fields().items()}
    assert all(all(found) for found in bounds.values()), bounds
    assert len([name for name, found in bounds.items() if found]) > 40
    assert len(bounds["policy.betas"]) == 2
    assert bounds["data.template"] == []


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=0", "train.num_prompts=0", "train.group_size=-1", "algorithm.gamma=1.1",
        "algorithm.clip_eps=0", "algorithm.clip_eps=1", "train.seed=-1", "algorithm.entropy_coef=-0.1",
        "train.micro_batch_tokens=0", "data.max_prompt_tokens=0", "data.verifier_workers=0",
        "data.verifier_time_limit_s=0", "data.template=''", "policy.lr=-1e-6", "policy.betas=[0.9, 1.0]",
        "policy.betas=[0.9]", "policy.eps=0", "policy.max_grad_norm=0", "policy.dropout=1.0",
        "critic.num_mini_batches=0", "critic.value_clip=-1", "kl.coef=-0.1", "kl.target=0", "kl.horizon=0",
        "engine.temperature=0", "engine.top_p=0", "engine.top_p=1.01", "engine.stop=['']",
        "engine.max_new_tokens=0", "eval.num_tasks=0", "checkpoint.keep_last=0", "run.num_threads=-1",
        "run.max_seconds=-1", "run.device=tpu", "policy.lr=nan", "policy.lr=inf", "run.max_seconds=inf",
        "train.steps=1.5", "train.steps=many",
    ],
)  # fmt: skip
def test_out_of_bounds(override: str) -> None:
    name, _, _ = override.partition("=")
    with pytest.raises(UsageError) as caught:
        config(override)
    assert name in caught.value.message


def test_sections_are_frozen_and_closed() -> None:
    whole = config()
    with pytest.raises(ValidationError, match="frozen"):
        whole.train.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        whole.train = whole.train  # type: ignore[misc]
    for section in [whole, *(getattr(whole, name) for name in Config.model_fields)]:
        assert isinstance(section, BaseModel)
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(section).model_validate({**section.model_dump(), "no_such_setting": 1})


COMBINATIONS = [
    (["data.files=['a.json']"], ["data.files", "data.family"], "not both"),
    (["data.family="], ["data.files", "data.family"], 'data.family="arithmetic"'),
    (["data.family=countdown"], ["data.family", "data.verifier"], 'set data.verifier="countdown"'),
    (["data.verifier=countdown"], ["data.family", "data.verifier"], 'set data.verifier="math"'),
    (["policy.schedule=linear"], ["policy.schedule", "policy.decay_steps"], "set policy.decay_steps"),
    (
        ["critic.schedule=linear", "critic.decay_steps=50"],
        ["critic.schedule", "critic.decay_steps"],
        "set critic.decay_steps",
    ),
    (
        ["critic.schedule=linear", "critic.decay_steps=51", "critic.min_lr=1e-5"],
        ["critic.lr", "critic.min_lr"],
        "set critic.min_lr to critic.lr (5e-06) or less",
    ),
    (["kl.controller=adaptive"], ["kl.controller", "kl.coef"], "set kl.coef above 0"),
    (
        ["kl.refresh_reference_every_epoch=true"],
        ["kl.refresh_reference_every_epoch", "kl.coef"],
        "set kl.coef above 0 or kl.measure=true",
    ),
    (
        ["data.family=", "data.files=['a.json']"],
        ["policy.init_from", "data.family"],
        'policy.init_from="builtin:tiny-random"',
    ),
    (
        ["data.family=", "data.files=['a.json']", "policy.init_from=m", "critic.init_from=builtin:tiny"],
        ["critic.init_from", "data.family"],
        'critic.init_from="builtin:tiny-random"',
    ),
]


@pytest.mark.parametrize(("overrides", "names", "remedy"), COMBINATIONS)
def test_a_wrong_combination_names_the_fields_and_what_to_set(
    overrides: list[str], names: list[str], remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        config(*overrides)
    assert caught.value.exit_code == 2
    for word in [*names, remedy]:
        assert word in caught.value.message


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.family=countdown", "data.verifier=countdown"],
        ["data.family=countdown", "data.verifier=my.module:check"],
        ["data.family=", "data.files=['a.json']", "policy.init_from=m", "data.verifier=countdown"],
        ["policy.schedule=linear", "policy.decay_steps=51"],
        ["policy.schedule=linear", "policy.decay_steps=51", "policy.min_lr=1e-6"],
        ["kl.controller=adaptive", "kl.coef=0.1"],
        ["kl.refresh_reference_every_epoch=true", "kl.measure=true"],
        ["algorithm.name=one-of-your-own"],  # `rl.algorithm.algorithm_of` knows the names
    ],
)
def test_a_combination_that_can_work(overrides: list[str]) -> None:
    config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], False),
        (["kl.coef=0.1"], True),
        (["kl.measure=true"], True),
        (["kl.controller=adaptive", "kl.coef=0.1"], True),
    ],
)
def test_when_a_reference_is_needed(overrides: list[str], needed: bool) -> None:
    assert config(*overrides).kl.needs_reference is needed


def test_values_round_trip_through_json() -> None:
    rich = config(
        "train.seed=123456789012345678901",
        "policy.lr=0.1234567890123456789",
        "data.family=",
        'data.files=["b/x y.json", "/a.parquet"]',
        "policy.init_from=some/model",
        "policy.betas=[0.1, 0.999]",
        'engine.stop=["</answer>", "\\u00fc\\n\\""]',
    )
    for whole in (config(), rich):
        assert Config.model_validate_json(whole.model_dump_json()) == whole
        assert Config.model_validate(json.loads(json.dumps(whole.model_dump(mode="json")))) == whole
