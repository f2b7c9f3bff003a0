"""Rollouts as one message, for ranks that tell one another what they have sampled. Knows nothing of ranks."""

from collections.abc import Sequence

import pyarrow as pa

from yaoki.journal.columns import Sample, SampleRows, rollout_table
from yaoki.types import Rollout


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
