"""Rollouts as columns of a table, and back without losing a bit. Knows nothing of files, runs or steps.

Text is valid Unicode in the columns, for every reader's sake. Python strings can hold half a surrogate
pair, which is not; in the column it reads U+FFFD, and the string as it was goes into the table's metadata.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from yaoki.types import Completion, FinishReason, Rollout, Verdict, VerdictReason

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ORIGINALS = b"yaoki.lone_surrogates"
"""Metadata: JSON of {column: {row: hexadecimal UTF-8 with surrogates}} for what is not valid Unicode. JSON's
own escapes would not do: they make one character of two halves side by side."""


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _ragged(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))


ROLLOUT_SCHEMA = pa.schema(
    [
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
class Sample:
    """What was sampled and how it was judged."""

    completion: Completion
    verdict: Verdict


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
    extracted = [rollout.verdict.extracted for rollout in rollouts]
    columns = [
        [rollout.prompt_index for rollout in rollouts],
        [rollout.sample for rollout in rollouts],
        [rollout.policy_version for rollout in rollouts],
        [rollout.prompt.task.uid for rollout in rollouts],
        [_unicode(rollout.prompt.task.source) for rollout in rollouts],
        [_unicode(rollout.prompt.task.problem) for rollout in rollouts],
        [_unicode(rollout.prompt.task.answer) for rollout in rollouts],
        [rollout.verdict.reward for rollout in rollouts],
        [rollout.verdict.reason.value for rollout in rollouts],
        [None if text is None else _unicode(text) for text in extracted],
        [completion.finish_reason.value for completion in completions],
        [_unicode(completion.text) for completion in completions],
        _to_lists([rollout.prompt.token_ids for rollout in rollouts], np.int64),
        _to_lists([completion.token_ids for completion in completions], np.int64),
        _to_lists([completion.logprobs for completion in completions], np.float64),
    ]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, ROLLOUT_SCHEMA, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=ROLLOUT_SCHEMA)
    originals = {
        "text": _not_unicode([completion.text for completion in completions]),
        "extracted": _not_unicode(extracted),
    }
    return table.replace_schema_metadata(
        {_ORIGINALS: json.dumps(originals)} if any(originals.values()) else None
    )


class SampleRows:
    """The samples in a table with ROLLOUT_SCHEMA's columns.

    Raises ValueError for values that no rollout has.
    """

    def __init__(self, table: pa.Table) -> None:
        self.prompts: list[int] = table["prompt"].to_pylist()
        self.samples: list[int] = table["sample"].to_pylist()
        self.task_uids: list[str] = table["task_uid"].to_pylist()
        self.prompt_ids = _from_lists(table["prompt_ids"])
        self._token_ids = _from_lists(table["token_ids"])
        self._logprobs = _from_lists(table["logprobs"])
        self._rewards: list[float] = table["reward"].to_pylist()
        self._verdicts = [VerdictReason(value) for value in table["verdict"].to_pylist()]
        self._finish_reasons = [FinishReason(value) for value in table["finish_reason"].to_pylist()]
        self._texts: list[str] = table["text"].to_pylist()
        self._extracted: list[str | None] = table["extracted"].to_pylist()
        self._put_originals_back(table.schema.metadata or {})
        self._require_sense()

    def __len__(self) -> int:
        return len(self.prompts)

    def place(self, row: int) -> tuple[int, int]:
        """(index of the prompt, sample)."""
        return self.prompts[row], self.samples[row]

    def sample(self, row: int) -> Sample:
        """One row as it was sampled."""
        return Sample(
            Completion(
                tuple(self._token_ids[row].tolist()),
                tuple(self._logprobs[row].tolist()),
                self._texts[row],
                self._finish_reasons[row],
            ),
            Verdict(self._rewards[row], self._verdicts[row], self._extracted[row]),
        )

    def content(self, row: int) -> tuple[object, ...]:
        """Compares equal for rows that hold the same bits, NaN included."""
        return (
            self._token_ids[row].tobytes(),
            self._logprobs[row].tobytes(),
            self._texts[row],
            self._finish_reasons[row],
            self._rewards[row],
            self._verdicts[row],
            self._extracted[row],
        )

    def _put_originals_back(self, metadata: Mapping[bytes, bytes]) -> None:
        try:
            originals = json.loads(metadata.get(_ORIGINALS, b"{}"))
            for name, column in (("text", self._texts), ("extracted", self._extracted)):
                for row, encoded in originals.get(name, {}).items():
                    text = bytes.fromhex(encoded).decode("utf-8", "surrogatepass")
                    column[range(len(column))[int(row)]] = text
        except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"metadata {_ORIGINALS.decode()} makes no sense: {error}") from error

    def _require_sense(self) -> None:
        if odd := [reward for reward in self._rewards if reward not in (0.0, 1.0)]:
            raise ValueError(f"a reward is {odd[0]}, neither 0 nor 1")
        if not np.array_equal(self._token_ids.lengths, self._logprobs.lengths):
            raise ValueError("a completion has more or fewer log-probabilities than tokens")
        if len({self.place(row) for row in range(len(self))}) < len(self):
            raise ValueError("the same (prompt, sample) is there twice")


def _unicode(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _not_unicode(texts: Sequence[str | None]) -> dict[int, str]:
    """Those that hold half a surrogate pair, by row, as in the metadata."""
    return {
        row: text.encode("utf-8", "surrogatepass").hex()
        for row, text in enumerate(texts)
        if text is not None and _LONE_SURROGATE.search(text)
    }


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
    """Everything of the rollouts that `unpack` gives back."""
    table = rollout_table(rollouts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    message: bytes = sink.getvalue().to_pybytes()
    return message


def unpack(message: bytes) -> dict[tuple[int, int], Sample]:
    """What was sampled, bit for bit, by (index of the prompt, sample)."""
    with pa.ipc.open_stream(message) as stream:
        rows = SampleRows(stream.read_all())
    return {rows.place(row): rows.sample(row) for row in range(len(rows))}
