"""Rollouts as columns of a table and back, bit for bit: in Parquet segments and in messages between ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))


_COLUMNS: Sequence[tuple[pa.Field, Callable[[Rollout], Any]]] = (
    (_field("step", pa.int64()), lambda r: r.key.step),
    (_field("prompt", pa.int32()), lambda r: r.key.prompt),
    (_field("sample", pa.int32()), lambda r: r.key.sample),
    (_field("policy_version", pa.int64()), lambda r: r.policy_version),
    (_field("task_uid", pa.string()), lambda r: r.prompt.task.uid),
    (_field("source", pa.string()), lambda r: r.prompt.task.source),
    (_field("problem", pa.string()), lambda r: r.prompt.task.problem),
    (_field("answer", pa.string()), lambda r: r.prompt.task.answer),
    (_field("reward", pa.float64()), lambda r: r.verdict.reward),
    (_field("verdict", pa.string()), lambda r: r.verdict.reason.value),
    (_field("extracted", pa.string(), nullable=True), lambda r: r.verdict.extracted),
    (_field("finish_reason", pa.string()), lambda r: r.completion.finish_reason.value),
    (_field("text", pa.string()), lambda r: r.completion.text),
    (_field("prompt_ids", _list(pa.int64())), lambda r: r.prompt.token_ids),
    (_field("token_ids", _list(pa.int64())), lambda r: r.completion.token_ids),
    (_field("logprobs", _list(pa.float64())), lambda r: r.completion.logprobs),
    (_field("not_sampled", _list(pa.int32())), lambda r: r.completion.not_sampled),
)
"""Each column with its value for a rollout."""

ROLLOUT_SCHEMA = pa.schema([field for field, _ in _COLUMNS])

_PARQUET_OPTIONS: Mapping[str, Any] = {
    "compression": "zstd",
    "write_page_checksum": True,
    # Log-probabilities stay out of dictionaries, where values that compare equal may become one.
    "use_dictionary": [
        *("task_uid", "source", "problem", "answer", "verdict", "extracted", "finish_reason", "engine"),
        *("prompt_ids.list.element", "token_ids.list.element"),
    ],
    "column_encoding": {"logprobs.list.element": "BYTE_STREAM_SPLIT"},
}


def rollout_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """One row per rollout, in order."""
    columns = [pa.array([value(rollout) for rollout in rollouts], field.type) for field, value in _COLUMNS]
    return pa.Table.from_arrays(columns, schema=ROLLOUT_SCHEMA)


def to_parquet(table: pa.Table) -> pa.Buffer:
    """The bytes of a Parquet file with all rows in one group; `table` has ROLLOUT_SCHEMA's columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=max(1, len(table)), **_PARQUET_OPTIONS)
    return sink.getvalue()


class RolloutRows:
    """The judged completions in a table with ROLLOUT_SCHEMA's columns."""

    def __init__(self, table: pa.Table) -> None:
        """Raises ValueError for values that no rollout has."""

        def column(name: str) -> list[Any]:
            values: list[Any] = table[name].to_pylist()
            return values

        self.keys = list(map(RolloutKey, column("step"), column("prompt"), column("sample")))
        self.task_uids: list[str] = column("task_uid")
        self.prompt_ids = _arrays(table["prompt_ids"])
        self._token_ids = _arrays(table["token_ids"])
        self._logprobs = _arrays(table["logprobs"])
        self._not_sampled = _arrays(table["not_sampled"])
        self._texts: list[str] = column("text")
        self._finish_reasons = list(map(FinishReason, column("finish_reason")))
        reasons = map(VerdictReason, column("verdict"))
        self._verdicts = list(map(Verdict, column("reward"), reasons, column("extracted")))
        self._validate()

    def __len__(self) -> int:
        return len(self.keys)

    def judged(self, row: int) -> JudgedCompletion:
        """One row as it was sampled and judged."""
        completion = Completion(
            tuple(self._token_ids[row].tolist()),
            tuple(self._logprobs[row].tolist()),
            self._texts[row],
            self._finish_reasons[row],
            tuple(self._not_sampled[row].tolist()),
        )
        return JudgedCompletion(completion, self._verdicts[row])

    def content(self, row: int) -> tuple[object, ...]:
        """Compares equal for rows that hold the same bits, NaN included."""
        judged = self.judged(row)
        return replace(judged.completion, logprobs=()), self._logprobs[row].tobytes(), judged.verdict

    def _validate(self) -> None:
        if odd := [verdict.reward for verdict in self._verdicts if not math.isfinite(verdict.reward)]:
            raise ValueError(f"a reward is {odd[0]}")
        if len(set(self.keys)) < len(self):
            raise ValueError("the same (prompt, sample) is there twice")
        for ids, logprobs, places in zip(self._token_ids, self._logprobs, self._not_sampled, strict=True):
            if len(logprobs) != len(ids):
                raise ValueError("a completion has more or fewer log-probabilities than tokens")
            if len(places) and not (places[0] >= 0 and places[-1] < len(ids) and (np.diff(places) > 0).all()):
                raise ValueError(f"not_sampled is {places.tolist()} of {len(ids)} tokens")


def _arrays(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """The rows of a list column; views of one array, so that a row costs nothing until it is used."""
    lists = column.combine_chunks()
    values, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


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
