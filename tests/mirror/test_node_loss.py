"""The proof: a run whose machine is lost goes on from its copy, and ends with the bits of an unbroken one."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.harness import assert_same_run, make_config, run_and_kill, run_to_end
from tests.support.shared import UnbrokenRuns
from yaoki.cli.options import training_config


@pytest.fixture
def unbroken(unbroken_run: UnbrokenRuns) -> Path:
    return unbroken_run(make_config())


@pytest.mark.parametrize("where", ["path", "s3"])
def test_a_lost_machine(request: pytest.FixtureRequest, tmp_path: Path, unbroken: Path, where: str) -> None:
    url = request.getfixturevalue("s3_url") if where == "s3" else f"file://{tmp_path}/store"
    path = tmp_path / "run"
    storage = [f"run.storage={url}", "run.storage_every_s=0.05"]
    run_to_end(path, make_config("train.steps=4", *storage))
    shutil.rmtree(path)
    log = run_to_end(path, make_config(*storage))
    assert f"fetched from {url}" in log
    assert "resuming from step-00000004, grade exact" in log
    assert_same_run(path, unbroken, 6)
    assert "test-secret" not in log + "".join(p.read_text() for p in path.glob("*.json*"))


def test_lost_at_any_instant(tmp_path: Path, unbroken: Path, rng) -> None:
    path, url = tmp_path / "run", f"file://{tmp_path}/store"
    config = make_config(f"run.storage={url}", "run.storage_every_s=0.01", "checkpoint.keep_last=1")
    for after_step in (1, 3):
        run_and_kill(path, config, after_step, rng)
        shutil.rmtree(path)
    log = run_to_end(path, config)
    assert "fetched from" in log
    assert_same_run(path, unbroken, 6)


def test_the_command_line_needs_no_recipe(tmp_path: Path) -> None:
    path, url = tmp_path / "run", f"file://{tmp_path}/store"
    run_to_end(path, make_config("train.steps=1", f"run.storage={url}"))
    directory, config = training_config([f'run.storage="{url}"', "train.steps=2"], tmp_path / "new")
    assert not directory.exists, "fetched under the lock, when it trains"
    assert (config.train.steps, config.train.num_prompts, config.run.storage) == (2, 4, url)
    stored = json.loads((path / "config.json").read_text())
    assert stored["run"]["storage"] == url
