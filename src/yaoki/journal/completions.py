"""Completions as Parquet, for pandas, DuckDB and `datasets`. Knows nothing of why they were sampled."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from yaoki.types import Rollout

_SCHEMA = pa.schema(
    [
        ("task_uid", pa.string()),
        ("source", pa.string()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("sample", pa.int32()),
        ("policy_version", pa.int64()),
        ("prompt_ids", pa.list_(pa.int64())),
        ("token_ids", pa.list_(pa.int64())),
        ("logprobs", pa.list_(pa.float64())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("extracted", pa.string()),
    ]
)


def write_completions(path: Path, rollouts: Sequence[Rollout]) -> None:
    """One row per rollout, in order; appears under `path` whole or not at all."""
    rows = [
        {
            "task_uid": r.prompt.task.uid,
            "source": r.prompt.task.source,
            "problem": r.prompt.task.problem,
            "answer": r.prompt.task.answer,
            "sample": r.sample,
            "policy_version": r.policy_version,
            "prompt_ids": r.prompt.token_ids,
            "token_ids": r.completion.token_ids,
            "logprobs": r.completion.logprobs,
            "text": r.completion.text,
            "finish_reason": r.completion.finish_reason.value,
            "reward": r.verdict.reward,
            "verdict": r.verdict.reason.value,
            "extracted": r.verdict.extracted,
        }
        for r in rollouts
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    pq.write_table(
        pa.Table.from_pylist(rows, schema=_SCHEMA),
        unfinished,
        compression="zstd",
        write_page_checksum=True,
    )
    unfinished.replace(path)
