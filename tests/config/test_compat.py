"""What may change between two attempts of one run."""

import json
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from yaoki.config.compat import change_class, compare, config_digest, require_resumable
from yaoki.config.load import load_config, setting_names
from yaoki.config.schema import Config
from yaoki.errors import RefusedError

FREE = {
    "run.device", "run.num_threads", "run.deterministic", "run.max_seconds", "run.show_samples_every",
    "train.steps", "data.files", "data.format", "data.problem_column", "data.answer_column",
    "data.on_bad_row", "data.verifier_workers", "policy.trust_remote_code", "eval.files",
    "checkpoint.every_steps", "checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.keep_best",
    "checkpoint.on_overrun", "checkpoint.copy_memory_gb", "train.on_nonfinite", "run.min_free_gb",
    "run.peer_timeout_s", "run.storage", "run.storage_every_s", "train.activation_checkpointing",
    "train.offload",
    "journal.enabled", "journal.flush_seconds", "journal.flush_rollouts", "journal.keep",
    "resume.on_divergence", "engine.gpu_memory_utilization", "engine.tensor_parallel",
}  # fmt: skip
"""Where files lie, how often something is saved or shown, how long to go on. Contents of data files are
compared by their digest, environments by their own record."""

STATE = {
    "algorithm.name", "train.seed", "data.family", "data.tasks_per_epoch", "data.max_prompt_tokens",
    "policy.init_from", "critic.init_from", "kl.controller", "kl.measure",
    "kl.refresh_reference_every_epoch", "engine.type", "eval.every_steps", "eval.num_tasks",
    "eval.num_samples",
}  # fmt: skip
"""What is saved would no longer fit, or would mean something else."""

BASE: dict[str, Any] = {
    "kl": {"coef": 0.1},
    "policy": {"init_from": "builtin:tiny-random", "decay_steps": 5000},
    "critic": {"init_from": "other", "decay_steps": 5000},
    "data": {"family": "arithmetic", "verifier": "my.module:check"},
}
"""From here every setting can change alone, but for those that `base` puts in their surroundings."""


def base(name: str) -> dict[str, Any]:
    values = {section: dict(fields) for section, fields in BASE.items()}
    if name == "data.files":
        values["data"] = {"files": ["a.json"], "verifier": "my.module:check"}
    if name == "engine.tensor_parallel":
        values["engine"] = {"type": "vllm"}
    return values


def with_value(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    section, _, field = name.partition(".")
    return {**values, section: {**values.get(section, {}), field: value}}


def bound(metadata: list[Any], kind: str, default: float) -> float:
    return next((float(getattr(m, kind)) for m in metadata if hasattr(m, kind)), default)


def values_of(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Any valid value of a field's type within its bounds."""
    if hasattr(annotation, "__metadata__"):
        inner = [part for info in annotation.__metadata__ for part in getattr(info, "metadata", [info])]
        return values_of(annotation.__origin__, inner)
    if get_origin(annotation) is Literal:
        # Without "": the family that would leave no tasks.
        return st.sampled_from([choice for choice in get_args(annotation) if choice])
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(int(bound(metadata, "ge", 0)), 4000)
    if annotation is float:
        low = max(bound(metadata, "ge", 0.0), math.nextafter(bound(metadata, "gt", -1.0), math.inf))
        high = min(bound(metadata, "le", 1e9), math.nextafter(bound(metadata, "lt", 1e9), 0.0))
        return st.floats(low, high)
    if annotation is str:
        return st.text(min_size=1, max_size=5).map(lambda text: f"x{text}")
    if annotation is Path:
        return st.sampled_from([Path("a.json"), Path("b/c.json"), Path("/d.parquet")])
    if get_args(annotation)[1:] == (Ellipsis,):
        return st.lists(values_of(get_args(annotation)[0], []), min_size=1, max_size=3).map(tuple)
    return st.tuples(*(values_of(part, []) for part in get_args(annotation)))


def field_values(name: str) -> st.SearchStrategy[Any]:
    section, _, field = name.partition(".")
    kind: Any = Config.model_fields[section].annotation
    info = kind.model_fields[field]
    if name == "journal.keep":
        return st.sampled_from(["needed", "all", "every 3"])
    return values_of(info.annotation, info.metadata)


@pytest.mark.parametrize("name", [n for n in setting_names() if n not in ("engine.type",)])
@settings(max_examples=25)
@given(data=st.data())
def test_each_setting_in_its_class(name: str, data: st.DataObject) -> None:
    values = base(name)
    stored = Config.model_validate(values)
    changed = Config.model_validate(with_value(values, name, data.draw(field_values(name), label=name)))
    section, _, field = name.partition(".")
    before, after = getattr(getattr(stored, section), field), getattr(getattr(changed, section), field)
    kind = "free" if name in FREE else "state" if name in STATE else "trajectory"
    differences = compare(stored, changed)
    if before == after:
        assert differences == []
        assert config_digest(stored) == config_digest(changed)
        return
    assert [(difference.name, difference.kind) for difference in differences] == [(name, kind)]
    assert (config_digest(stored) == config_digest(changed)) is (kind == "free")
    if kind == "free":
        assert require_resumable(stored, changed) == differences
        return
    with pytest.raises(RefusedError) as caught:
        require_resumable(stored, changed)
    json_before, json_after = (config.model_dump(mode="json")[section][field] for config in (stored, changed))
    assert f"{name}: the run has {json_before!r}, now asked for {json_after!r}" in caught.value.message
    assert f"put {name} back to resume" in (caught.value.hint or "")


def test_every_class_names_settings_that_exist() -> None:
    assert set(setting_names()) >= FREE | STATE
    assert not FREE & STATE
    assert change_class("engine", "type") == "state"


def another_value(name: str, before: Any) -> Any:
    return find(field_values(name), lambda v: v != before, settings=settings(phases=[Phase.generate]))


def test_the_strategies_change_every_setting() -> None:
    """Otherwise the property above would hold for want of cases."""
    for name in setting_names():
        if name == "engine.type":  # there is only one so far
            continue
        values = base(name)
        section, _, field = name.partition(".")
        before = getattr(getattr(Config.model_validate(values), section), field)
        assert another_value(name, before) != before


def test_all_changes_are_listed_at_once_and_free_ones_do_not_refuse() -> None:
    stored = load_config(None, ["data.family=arithmetic"])
    asked = load_config(
        None,
        [
            "data.family=arithmetic",
            "train.seed=1",
            "policy.lr=2e-6",
            "train.num_prompts=64",
            "checkpoint.every_steps=3",
        ],
    )
    with pytest.raises(RefusedError) as caught:
        require_resumable(stored, asked)
    assert caught.value.exit_code == 3
    assert "train.seed: the run has 0, now asked for 1  (would no longer fit" in caught.value.message
    assert "policy.lr: the run has 1e-06, now asked for 2e-06  (would make it" in caught.value.message
    assert "checkpoint.every_steps" not in caught.value.message
    hint = caught.value.hint or ""
    assert hint.startswith("put train.seed, train.num_prompts, policy.lr back to resume")
    assert "yaoki fork RUN" in hint
    free = load_config(None, ["data.family=arithmetic", "checkpoint.every_steps=3", "train.steps=2000"])
    assert [change.name for change in require_resumable(stored, free)] == [
        "train.steps",
        "checkpoint.every_steps",
    ]


def test_a_digest_is_the_same_in_every_process_and_after_json() -> None:
    config = load_config(None, ["data.family=arithmetic"])
    again = Config.model_validate(json.loads(config.model_dump_json()))
    assert config_digest(again) == config_digest(config)
    assert len(config_digest(config)) == 32
