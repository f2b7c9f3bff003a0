"""Completions as one Parquet file, for pandas, DuckDB and `datasets`; why they were sampled is not known."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from yaoki import fs
from yaoki.journal.columns import PARQUET_OPTIONS, rollout_table
from yaoki.types import Rollout


def write_completions(path: Path, rollouts: Sequence[Rollout]) -> None:
    """One row per rollout, in order; appears under `path` whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(rollout_table(rollouts), sink, **PARQUET_OPTIONS)
    fs.make_directory(path.parent)
    fs.publish(path, memoryview(sink.getvalue()))
