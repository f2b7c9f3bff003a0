"""Rollouts as columns of a table and back, bit for bit: in Parquet segments and in messages between ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from yaoki.types import (
    Completion,
    FinishReason,
    JudgedCompletion,
    Rollout,
    RolloutKey,
    Verdict,
    VerdictReason,
)


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _ragged(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))


ROLLOUT_SCHEMA = pa.schema(
    [
        _field("step", pa.int64()),
        _field("prompt", pa.int32()),
        _field("sample", pa.int32()),
        _field("policy_version", pa.int64()),
        _field("task_uid", pa.string()),
        _field("source", pa.string()),
        _field("problem", pa.string()),
        _field("answer", pa.string()),
        _field("reward", pa.float64()),
        _field("verdict", pa.string()),
        _field("extracted", pa.string(), nullable=True),
        _field("finish_reason", pa.string()),
        _field("text", pa.string()),
        _field("prompt_ids", _ragged(pa.int64())),
        _field("token_ids", _ragged(pa.int64())),
        _field("logprobs", _ragged(pa.float64())),
        _field("not_sampled", _ragged(pa.int32())),
    ]
)

PARQUET_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "write_page_checksum": True,
    # Log-probabilities stay out of dictionaries, where values that compare equal may become one.
    "use_dictionary": [
        *("task_uid", "source", "problem", "answer", "verdict", "extracted", "finish_reason", "engine"),
        *("prompt_ids.list.element", "token_ids.list.element"),
    ],
    "column_encoding": {"logprobs.list.element": "BYTE_STREAM_SPLIT"},
}
"""For pyarrow.parquet.write_table."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths, end to end."""

    values: NDArray[Any]
    offsets: NDArray[np.int32]
    """`[N + 1]`: row i is values[offsets[i] : offsets[i + 1]]."""

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """`[N]`"""
        return np.diff(self.offsets)


def rollout_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """One row per rollout, in order."""
    completions = [rollout.completion for rollout in rollouts]
    columns = [
        [rollout.key.step for rollout in rollouts],
        [rollout.key.prompt for rollout in rollouts],
        [rollout.key.sample for rollout in rollouts],
        [rollout.policy_version for rollout in rollouts],
        [rollout.prompt.task.uid for rollout in rollouts],
        [rollout.prompt.task.source for rollout in rollouts],
        [rollout.prompt.task.problem for rollout in rollouts],
        [rollout.prompt.task.answer for rollout in rollouts],
        [rollout.verdict.reward for rollout in rollouts],
        [rollout.verdict.reason.value for rollout in rollouts],
        [rollout.verdict.extracted for rollout in rollouts],
        [completion.finish_reason.value for completion in completions],
        [completion.text for completion in completions],
        _to_lists([rollout.prompt.token_ids for rollout in rollouts], np.int64),
        _to_lists([completion.token_ids for completion in completions], np.int64),
        _to_lists([completion.logprobs for completion in completions], np.float64),
        _to_lists([completion.not_sampled for completion in completions], np.int32),
    ]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, ROLLOUT_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=ROLLOUT_SCHEMA)


class RolloutRows:
    """The judged completions in a table with ROLLOUT_SCHEMA's columns.

    Raises ValueError for values that no rollout has.
    """

    def __init__(self, table: pa.Table) -> None:
        coordinates = (table[name].to_pylist() for name in ("step", "prompt", "sample"))
        self.keys = [RolloutKey(*key) for key in zip(*coordinates, strict=True)]
        self.task_uids: list[str] = table["task_uid"].to_pylist()
        self.prompt_ids = _from_lists(table["prompt_ids"])
        self._token_ids = _from_lists(table["token_ids"])
        self._logprobs = _from_lists(table["logprobs"])
        self._not_sampled = _from_lists(table["not_sampled"])
        self._rewards: list[float] = table["reward"].to_pylist()
        self._verdicts = [VerdictReason(value) for value in table["verdict"].to_pylist()]
        self._finish_reasons = [FinishReason(value) for value in table["finish_reason"].to_pylist()]
        self._texts: list[str] = table["text"].to_pylist()
        self._extracted: list[str | None] = table["extracted"].to_pylist()
        self._validate()

    def __len__(self) -> int:
        return len(self.keys)

    def judged(self, row: int) -> JudgedCompletion:
        """One row as it was sampled and judged."""
        return JudgedCompletion(
            Completion(
                tuple(self._token_ids[row].tolist()),
                tuple(self._logprobs[row].tolist()),
                self._texts[row],
                self._finish_reasons[row],
                tuple(self._not_sampled[row].tolist()),
            ),
            Verdict(self._rewards[row], self._verdicts[row], self._extracted[row]),
        )

    def content(self, row: int) -> tuple[object, ...]:
        """Compares equal for rows that hold the same bits, NaN included."""
        return (
            self._token_ids[row].tobytes(),
            self._logprobs[row].tobytes(),
            self._not_sampled[row].tobytes(),
            self._texts[row],
            self._finish_reasons[row],
            self._rewards[row],
            self._verdicts[row],
            self._extracted[row],
        )

    def _validate(self) -> None:
        if odd := [reward for reward in self._rewards if not math.isfinite(reward)]:
            raise ValueError(f"a reward is {odd[0]}")
        if not np.array_equal(self._token_ids.lengths, self._logprobs.lengths):
            raise ValueError("a completion has more or fewer log-probabilities than tokens")
        if len(set(self.keys)) < len(self):
            raise ValueError("the same (prompt, sample) is there twice")
        for row in range(len(self)):
            places, length = self._not_sampled[row], len(self._token_ids[row])
            if len(places) and not (places[0] >= 0 and places[-1] < length and (np.diff(places) > 0).all()):
                raise ValueError(f"not_sampled is {places.tolist()} of {length} tokens")


def _to_lists(rows: Sequence[Sequence[float]], kind: type[np.generic]) -> pa.Array:
    """A list column of numbers."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.empty(offsets[-1], kind)
    for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
        values[start:end] = row
    arrow = pa.array(values)
    return pa.ListArray.from_arrays(offsets, arrow, type=_ragged(arrow.type))


def _from_lists(column: pa.ChunkedArray) -> Ragged:
    lists = column.combine_chunks()
    return Ragged(lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy())


def pack(rollouts: Sequence[Rollout]) -> bytes:
    """Rollouts as a message to other ranks."""
    table = rollout_table(rollouts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    message: bytes = sink.getvalue().to_pybytes()
    return message


def unpack(message: bytes) -> dict[RolloutKey, JudgedCompletion]:
    """The inverse of `pack`, bit for bit."""
    with pa.ipc.open_stream(message) as stream:
        rows = RolloutRows(stream.read_all())
    return {key: rows.judged(row) for row, key in enumerate(rows.keys)}
