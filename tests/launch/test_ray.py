"""`yaoki train --ray` on real clusters of this machine: deaths, a lost node, stops, and errors for good."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.metrics import read_metrics
from yaoki.checkpoint.catalog import Catalog
from yaoki.cli.main import main
from yaoki.runs.directory import RunDirectory

from .commands import OVERRIDES, STEPS, assert_as_unbroken, outcomes, processes_of

cluster_utils = pytest.importorskip(
    "ray.cluster_utils", reason="Ray is not installed: pip install 'yaoki[ray]'"
)


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _own_ray(_surroundings: None) -> Iterator[None]:
    """Nothing of another Ray on this machine is found. A short path: sockets are in it."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(_own_ray: None) -> Iterator[Any]:
    """Two machines with room for one worker each, as far as Ray knows."""
    found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", found.address)
        yield found
    found.shutdown()


@pytest.fixture
def words(recipe: Path, run: Path) -> list[str]:
    return ["yaoki", "train", str(recipe), *OVERRIDES, "--run", str(run), "--ray", "--workers"]


def test_a_cluster_of_its_own_is_stopped_and_the_same_command_goes_on(
    start: Callable, words: list[str], run: Path, plans: Path, unbroken: Path
) -> None:
    (plans / "hold-generate-1").write_text("2")
    command = start(*words, "2")
    command.wait_until((plans / "held").exists)
    command.send(signal.SIGTERM)
    done = command.done()
    assert done.code == 75, done.said
    assert done.said.count("stopped: SIGTERM received") == 1
    assert outcomes(run) == ["stopped"]
    assert processes_of(run) == []

    done = start(*words, "2").done()
    assert done.code == 0, done.said
    assert done.said.count("saved step-00000004") == 1
    assert outcomes(run) == ["stopped", "finished"]
    assert "ray" not in done.said.lower(), "Ray is quiet"
    assert_as_unbroken(run, unbroken)


def test_dead_workers_are_started_again_and_nothing_changes(
    cluster: Any, start: Callable, words: list[str], run: Path, plans: Path, unbroken: Path
) -> None:
    (plans / "die-generate-1").write_text("2")
    (plans / "die-update-0").write_text("3")
    done = start(*words, "2").done()
    assert done.code == 0, done.said
    assert not list(plans.iterdir())
    ended = outcomes(run)
    assert len(ended) == 3
    assert set(ended[:2]) <= {"killed", "failed"}
    assert ended[2] == "finished"
    assert "ray: worker 1 was killed by SIGKILL" in done.said
    assert "ray: worker 0 was killed by SIGKILL" in done.said
    assert done.said.count("ray: starting again with 2 workers") == 2
    assert_as_unbroken(run, unbroken)


def test_an_error_for_good_is_not_tried_again(
    cluster: Any, start: Callable, words: list[str], run: Path
) -> None:
    RunDirectory(run).path.mkdir()
    (run / "somebody's").touch()
    done = start(*words, "2").done()
    assert done.code == 3, done.said
    assert done.said.count(f"error: {run} is not empty and holds no run") == 1
    assert "starting again" not in done.said


@pytest.mark.slow
def test_a_lost_node_leaves_fewer_workers(
    cluster: Any, start: Callable, words: list[str], run: Path, plans: Path
) -> None:
    (plans / "hold-generate-1").write_text("3")
    (node,) = cluster.worker_nodes
    command = start(*words, "1:2")
    command.wait_until((plans / "held").exists)
    cluster.remove_node(node, allow_graceful=False)
    done = command.done()
    assert done.code == 0, done.said
    assert "ray: starting again with 1 worker\n" in done.said
    assert "elastic" in done.said
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    saved = Catalog(run / "checkpoints").choose().checkpoint
    assert saved is not None
    assert saved.manifest.world_size == 1


def test_without_ray_it_says_what_to_install(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*words, "2"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "hint: pip install 'yaoki[ray]'" in capfd.readouterr().err
