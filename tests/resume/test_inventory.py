"""The inventory is complete, and every line of it is needed."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.harness import EVERYTHING, final_state, make_config, run, trajectory
from tests.support.shared import UnbrokenRuns
from yaoki.checkpoint.io.reader import load
from yaoki.runs.directory import RunDirectory
from yaoki.train import session
from yaoki.train.console import Console
from yaoki.train.state import DERIVED, RunState
from yaoki.train.trainer import Trainer

STEPS, CUT = 6, 3
NEEDED = [
    "policy.params",
    "policy.optim",
    "policy.schedule",
    "critic.params",
    "critic.optim",
    "critic.schedule",
    "reference.params",
    "progress",
    "data",
    "kl",
    "rng",
]


@pytest.fixture
def unbroken(unbroken_run: UnbrokenRuns) -> Path:
    """A run that uses everything, of STEPS steps."""
    return unbroken_run(make_config(*EVERYTHING))


@pytest.fixture
def cut_run(unbroken_run: UnbrokenRuns) -> Path:
    """The same run, ended at step CUT."""
    return unbroken_run(make_config(*EVERYTHING, f"train.steps={CUT}"))


def forget(*names: str) -> Callable[[], None]:
    """Make the restore of this process leave out some parts; weights that are left out are others."""

    def patch() -> None:
        def restore(self: RunState, saved: Any) -> None:
            for part in self.inventory():
                if part.name not in names:
                    part.restore(saved[part.name])
                elif part.name.endswith(".params"):
                    for name, tensor in live_tensors(self, [part.name])[part.name].items():
                        tensor.detach().copy_(0.9 * saved[part.name].tensors[name])

        live_tensors = RunState.live_tensors

        def other_live_tensors(self: RunState, parts: Any) -> dict[str, Any]:
            """What a checkpoint is read straight into."""
            return {name: found for name, found in live_tensors(self, parts).items() if name not in names}

        RunState.restore = restore  # type: ignore[method-assign]
        RunState.live_tensors = other_live_tensors  # type: ignore[method-assign]

    return patch


def resumed_without(cut_run: Path, path: Path, *names: str) -> Path:
    shutil.copytree(cut_run, path)
    ended = run(path, make_config(*EVERYTHING), forget(*names))
    assert ended.exit_code == 0, ended.log
    return path


def test_with_every_part_the_bits_are_the_same(cut_run: Path, unbroken: Path, tmp_path: Path) -> None:
    path = resumed_without(cut_run, tmp_path / "run")
    assert final_state(path, STEPS) == final_state(unbroken, STEPS)
    assert trajectory(path) == trajectory(unbroken)


@pytest.mark.parametrize("part", NEEDED)
def test_without_a_part_the_run_is_another(part: str, cut_run: Path, unbroken: Path, tmp_path: Path) -> None:
    """The control of the diamond: if leaving a part out changed nothing, the diamond would prove nothing."""
    path = resumed_without(cut_run, tmp_path / "run", part)
    assert trajectory(path) != trajectory(unbroken)


def test_weights_alone_are_another_run(cut_run: Path, unbroken: Path, tmp_path: Path) -> None:
    others = [name for name in NEEDED if not name.endswith(".params")]
    path = resumed_without(cut_run, tmp_path / "run", *others)
    assert trajectory(path)[CUT:] != trajectory(unbroken)[CUT:]


def test_the_list_of_needed_parts_is_the_inventory(cut_run: Path) -> None:
    checkpoint = load(cut_run / "checkpoints" / f"step-{CUT:08d}")
    assert sorted(checkpoint.parts) == sorted([*NEEDED, "lineage", "metrics"])


def test_what_a_step_changes_is_saved_or_declared_derived(tmp_path: Path) -> None:
    """Two trainers, one after three steps and one restored from its checkpoint, are equal all the way down.

    Whatever is mutable and was not restored differs, and must then be declared in DERIVED.
    """
    assert undeclared_differences(tmp_path) == []


def test_the_walk_finds_an_attribute_that_nobody_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def step_with_average(self: Trainer) -> None:
        step(self)
        learner: Any = self.state.learner
        learner.average_reward = getattr(learner, "average_reward", 0.0) * 0.9 + 0.1

    monkeypatch.setattr(Trainer, "_step", step_with_average)
    assert undeclared_differences(tmp_path) == ["state.learner.average_reward"]


def undeclared_differences(directory: Path) -> list[str]:
    """Paths of leaves that differ between a trainer that ran and one that was restored."""
    seen: list[dict[str, Any]] = []
    train = Trainer.train

    def record_after(self: Trainer, *, measure_at_end: bool) -> float | None:
        result = train(self, measure_at_end=measure_at_end)
        seen.append(dict(leaves(self)))
        return result

    def record_restored(self: Trainer, *, measure_at_end: bool) -> float | None:
        seen.append(dict(leaves(self)))
        return None

    config = make_config(*EVERYTHING, f"train.steps={CUT}", "eval.every_steps=0")
    with pytest.MonkeyPatch.context() as patch, Console(0) as console:
        patch.setattr(Trainer, "train", record_after)
        session.train(RunDirectory(directory / "run"), config, console)
        (directory / "run" / "summary.json").unlink()
        patch.setattr(Trainer, "train", record_restored)
        session.train(RunDirectory(directory / "run"), config, console)
    after, restored = seen
    missing = object()
    paths = sorted(after.keys() | restored.keys())
    return [
        path
        for path in paths
        if not same(after.get(path, missing), restored.get(path, missing))
        and not any(path == name or path.startswith(f"{name}.") for name in DERIVED)
    ]


def leaves(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Every value that is reachable from the trainer, by path; derived branches are not entered."""
    yield from _walk("", trainer, set())


def _walk(path: str, value: Any, entered: set[int]) -> Iterator[tuple[str, Any]]:
    if path in DERIVED or (callable(value) and not isinstance(value, torch.nn.Module)):
        return
    if isinstance(value, torch.Tensor | np.ndarray):
        yield path, value.detach().numpy().copy() if isinstance(value, torch.Tensor) else value.copy()
        return
    if isinstance(value, int | float | str | bytes | bool | Path | None.__class__):
        yield path, value
        return
    if id(value) in entered:
        return
    entered.add(id(value))
    for name, child in _children(value):
        yield from _walk(f"{path}.{name}" if path else name, child, entered)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        keys = [key if isinstance(key, str | int) else f"#{i}" for i, key in enumerate(value)]
        yield from zip(map(str, keys), value.values(), strict=True)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(i), child) for i, child in enumerate(value))
    elif dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        yield from getattr(value, "__dict__", {}).items()
    elif isinstance(value, torch.optim.Optimizer):
        yield "state", list(value.state.values())
        yield "groups", [{k: v for k, v in g.items() if k != "params"} for g in value.param_groups]
    elif isinstance(value, torch.nn.Module):
        yield from value.state_dict().items()
    else:
        yield from vars(value).items() if hasattr(value, "__dict__") else ()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)
