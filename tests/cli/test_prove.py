"""The proof, as a user asks for it: real processes, really killed; and what it says when it fails."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from yaoki.cli.reports import describe_proof
from yaoki.commands.prove import REPLAYED, RESUMED, UNBROKEN, WEIGHTS_ONLY, Proof

SMALL = ["train.num_prompts=2", "train.group_size=2", "eval.every_steps=0"]


def test_it_holds_on_a_small_recipe(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "yaoki",
        "prove",
        "--json",
        "--steps",
        "4",
        "--keep",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run([*command, *SMALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["holds"] is True
    assert set(found["digests"]) == {UNBROKEN, RESUMED, REPLAYED, WEIGHTS_ONLY}
    assert {"policy.params", "critic.optim", "progress", "rng", "metrics rows"} <= set(
        found["digests"][UNBROKEN]
    )
    assert sum("SIGKILL" in event for event in found["events"]) == 2
    assert (tmp_path / "runs" / "replayed" / "metrics.jsonl").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 3
    assert "already exists" in again.stderr


def proof(**changed: str) -> Proof:
    same = {"policy.params": "a", "rng": "b"}
    digests = {
        UNBROKEN: same,
        RESUMED: same,
        REPLAYED: same,
        WEIGHTS_ONLY: {"policy.params": "x", "rng": "b"},
    }
    return Proof(
        4, digests | {run: {"policy.params": value, "rng": "b"} for run, value in changed.items()}, ()
    )


def test_it_needs_all_three() -> None:
    assert proof().holds
    assert not proof(**{RESUMED: "c"}).holds
    assert not proof(**{REPLAYED: "c"}).holds
    assert not proof(**{WEIGHTS_ONLY: "a"}).holds
    missing = proof()
    assert not replace(missing, digests=missing.digests | {RESUMED: {"policy.params": "a"}}).holds


def test_the_table_says_what_differs() -> None:
    lines = describe_proof(proof(**{RESUMED: "c"})).splitlines()
    assert next(line for line in lines if line.startswith("policy.params")).split()[1:] == [
        "differs",
        "equal",
        "differs",
    ]
    assert "NOT proved" in lines[-1]
    assert "Proved: over 4 steps" in describe_proof(proof())
