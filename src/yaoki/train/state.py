"""The inventory of a run's state: every part of it, how it is captured, how it is restored.

Whatever changes over a step is in the table below or in DERIVED at the end of this file, which is rebuilt and
never saved; a test walks the trainer and fails on anything else.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor

from yaoki.checkpoint.io.reader import restore_into
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.manifest import Scope
from yaoki.data.prompts import LoaderState, PromptLoader
from yaoki.errors import CorruptCheckpointError, DivergenceError, RefusedError
from yaoki.journal.metrics import LogPosition, MetricsLog
from yaoki.learner.learner import Learner, UpdateStats
from yaoki.learner.network import TrainedNetwork
from yaoki.ranks.agree import all_gather_json
from yaoki.ranks.torch_internals import local_tensor
from yaoki.ranks.world import World
from yaoki.rl.kl import KLController
from yaoki.strict_json import JSON, encode
from yaoki.train import rng
from yaoki.types import Prompt, Rollout


@dataclass
class Progress:
    """The run's counters."""

    global_step: int = 0
    """Steps done."""
    policy_version: int = 0
    """Updates that the policy has seen."""
    reference_version: int = 0
    """policy_version of the weights that the reference holds."""
    num_prompts: int = 0
    num_rollouts: int = 0
    num_tokens: int = 0
    """Response tokens sampled."""
    best_accuracy: float | None = None
    """Best held-out accuracy so far."""
    best_step: int = 0
    """global_step of the weights that reached it."""
    history: str = ""
    """Digest chain of the environments of the steps so far. Two attempts that have done a step with the same
    history must have the same bits after it."""

    def advance(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], stats: UpdateStats, history: str
    ) -> None:
        """Count a step that was done."""
        self.global_step += 1
        self.policy_version += stats.policy is not None
        self.num_prompts += len(prompts)
        self.num_rollouts += len(rollouts)
        self.num_tokens += sum(rollout.completion.num_sampled for rollout in rollouts)
        self.history = history

    def note_accuracy(self, found: float | None) -> None:
        """Remember the accuracy of the current weights, if it is the best so far."""
        if found is not None and (self.best_accuracy is None or found > self.best_accuracy):
            self.best_accuracy, self.best_step = found, self.global_step


@dataclass
class Lineage:
    """What this attempt belongs to, and how long the run has taken over all attempts."""

    run_id: str
    attempt: int
    """Which process lifetime of the run this is, from 1; never restored."""
    parent_run_id: str | None
    """The run that this one was forked from; its checkpoint may be restored too."""
    train_seconds: float = 0.0
    """Wall time of all steps that count."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the state."""

    name: str
    scope: Scope
    holds: str
    """Description for display."""
    capture: Callable[[], PartState]
    restore: Callable[[PartState], None]
    fingerprinted: bool = True
    """Part of each step's fingerprint; False where it depends on the clock or on the attempt."""


@dataclass(frozen=True, slots=True)
class RunState:
    """The live objects whose state is the run's."""

    learner: Learner
    loader: PromptLoader
    kl: KLController
    progress: Progress
    lineage: Lineage
    metrics: MetricsLog | None
    """On rank 0, which writes it."""
    world: World

    def inventory(self) -> list[Part]:
        """All parts, in the order of restoring; the generators come last."""
        parts = _network("policy", self.learner.policy)
        if self.learner.critic is not None:
            parts += _network("critic", self.learner.critic)
        if self.learner.reference is not None:
            weights = self.learner.reference.state_dict
            holds = "the reference, of its own version"
            parts.append(_tensors("reference.params", holds, weights, rarely_changes=True))
        return [
            *parts,
            _json("progress", "steps, versions, counters, best score", *_fields_of(self.progress)),
            _json("data", "epoch and place in it", *_loader(self.loader)),
            _json("kl", "the KL controller's coefficient", self.kl.state, self.kl.restore),
            _json("lineage", "run id, time trained", *_lineage(self.lineage), fingerprinted=False),
            _json("metrics", "end of metrics.jsonl", *_metrics(self.metrics), fingerprinted=False),
            _json(
                "rng", "generators of python, numpy, torch, CUDA", rng.capture, rng.restore, Scope.PER_RANK
            ),
        ]

    def scopes(self) -> dict[str, Scope]:
        """Name and scope of every part that a checkpoint of this run holds."""
        return {part.name: part.scope for part in self.inventory()}

    def capture(self) -> Snapshot:
        """References to all tensors and copies of all else, as of now."""
        return Snapshot({part.name: part.capture() for part in self.inventory()})

    def live_tensors(self, parts: Collection[str]) -> dict[str, Mapping[str, Tensor]]:
        """The tensors of some parts, by part, to be restored into; moments are made for it."""
        for name, network in (("policy", self.learner.policy), ("critic", self.learner.critic)):
            if network is not None and f"{name}.optim" in parts:
                network.make_moments()
        found = {part.name: part.capture().tensors for part in self.inventory()}
        return {name: tensors for name, tensors in found.items() if tensors}

    def restore(self, saved: Mapping[str, PartState]) -> None:
        """Put every part back; `saved` has exactly the parts of the inventory."""
        for part in self.inventory():
            part.restore(saved[part.name])

    def fingerprint(self) -> dict[str, str]:
        """Digest of every part whose bits an exact resume reproduces; the same on every rank.

        Raises DivergenceError if the ranks do not agree on what they all have.
        """
        parts = [part for part in self.inventory() if part.fingerprinted]
        own = {part.name: _digest(part.capture()) for part in parts}
        if self.world.size == 1:
            return own
        all_ranks = all_gather_json(self.world.loop, own)
        for part in parts:
            digests = [digests[part.name] for digests in all_ranks]
            if part.scope is not Scope.GLOBAL:
                own[part.name] = xxhash.xxh3_128_hexdigest(" ".join(digests).encode())
            elif len(set(digests)) > 1:
                raise DivergenceError(
                    f"the workers do not agree on {part.name}: {', '.join(digests)}",
                    hint="the machine of one of them computes wrongly: replace it, then start the run again",
                )
        return own


def _network(name: str, network: TrainedNetwork) -> list[Part]:
    def schedule() -> JSON:
        return {"num_batches": network.num_batches}

    def restore_schedule(saved: dict[str, Any]) -> None:
        network.num_batches = int(saved["num_batches"])

    moments = Part(
        f"{name}.optim",
        Scope.SHARDED,
        f"AdamW's moments and step counts of the {name}",
        lambda: PartState(Scope.SHARDED, network.moments()),
        lambda part: _restore_moments(network, part.tensors),
    )
    return [
        _tensors(f"{name}.params", f"weights of the {name}", network.weights),
        moments,
        _json(f"{name}.schedule", f"learning-rate schedule of the {name}", schedule, restore_schedule),
    ]


def _restore_moments(network: TrainedNetwork, saved: Mapping[str, Tensor]) -> None:
    if not saved:
        network.drop_moments()
        return
    if not network.moments():
        network.make_moments()
    restore_into(network.moments(), saved)


def _tensors(
    name: str, holds: str, live: Callable[[], Mapping[str, Tensor]], *, rarely_changes: bool = False
) -> Part:
    return Part(
        name,
        Scope.SHARDED,
        holds,
        lambda: PartState(Scope.SHARDED, live(), rarely_changes=rarely_changes),
        lambda part: restore_into(live(), part.tensors),
    )


def _json(
    name: str,
    holds: str,
    capture: Callable[[], Any],
    restore: Callable[[Any], None],
    scope: Scope = Scope.GLOBAL,
    *,
    fingerprinted: bool = True,
) -> Part:
    def restore_part(part: PartState) -> None:
        try:
            restore(part.json)
        except (TypeError, KeyError, ValueError) as error:
            raise CorruptCheckpointError(
                f"the part {name} does not have the expected form: {error!r}"
            ) from error

    return Part(name, scope, holds, lambda: PartState(scope, json=capture()), restore_part, fingerprinted)


_JsonPair = tuple[Callable[[], Any], Callable[[Any], None]]


def _fields_of(progress: Progress) -> _JsonPair:
    def restore(saved: dict[str, Any]) -> None:
        for name, value in asdict(Progress(**saved)).items():
            setattr(progress, name, value)

    return lambda: asdict(progress), restore


def _loader(loader: PromptLoader) -> _JsonPair:
    return lambda: asdict(loader.state()), lambda saved: loader.restore(LoaderState(**saved))


def _lineage(lineage: Lineage) -> _JsonPair:
    def restore(saved: dict[str, Any]) -> None:
        if saved["run_id"] not in (lineage.run_id, lineage.parent_run_id):
            raise RefusedError(
                f"the checkpoint belongs to the run {saved['run_id']}, this directory to {lineage.run_id}",
                hint="put the checkpoints back where they were written",
            )
        lineage.train_seconds = float(saved["train_seconds"])

    return lambda: {"run_id": lineage.run_id, "train_seconds": lineage.train_seconds}, restore


def _metrics(metrics: MetricsLog | None) -> _JsonPair:
    if metrics is None:
        return dict, lambda _: None
    return lambda: asdict(metrics.position()), lambda saved: metrics.cut_back(LogPosition(**saved))


def _digest(part: PartState) -> str:
    """xxh3-128 over names, dtypes, shapes and bytes of the tensors, and the JSON."""
    digest = xxhash.xxh3_128(encode(part.json))
    for name, tensor in part.tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(local_tensor(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


DERIVED = {
    "engine": "weights are pushed from the policy after restoring and after every update",
    "collector": "engine, journal, verifier processes; a verdict depends on task and text alone",
    "checkpointer": "which step was saved when is read from the directory",
    "stop": "belongs to the process",
    "console": "display only",
    "recorder": "trackers, which resume from the restored step, and rows that earlier attempts recorded",
    "eval_prompts": "function of config and dataset",
    "config": "stored in the run directory and compared on resume",
    "environment_digest": "facts about this process",
    "state.lineage.attempt": "counted from attempts.jsonl",
    "journal": "a step's rollouts are read when the step begins",
    "weight_sync": "engine and learner, and a constant text",
    "boundary_checks": "functions of the disk and of the thread that copies the run",
    "state.world": "the ranks of this attempt",
    "state.learner._world": "the ranks of this attempt",
    "state.metrics._superseded_path": "names the attempt",
}
"""Attributes of the trainer that are rebuilt, never saved, each with what rebuilds it."""
