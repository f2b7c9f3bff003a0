"""Rows of metrics.jsonl: read as plain JSON, or made by hand."""

import json
from pathlib import Path
from typing import Any

from yaoki.journal.step_row import StepRow, StepTiming

TIMING = dict.fromkeys((name for name in StepTiming.model_fields if name != "num_reused_rollouts"), 1.0)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete row of a metrics file as plain JSON; none without a file."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def step_row(step: int, attempt: int = 1, **fields: Any) -> StepRow:
    """A row with made-up numbers."""
    shares = ("reward", "pass_at_n", "truncated", "has_format", "repetition", "reflection_words")
    plain = {
        **dict.fromkeys(shares, 0.5),
        **dict.fromkeys(("length", "length_correct", "length_incorrect"), 3.0),
        **dict.fromkeys(("logprob_gap_mean", "logprob_gap_max", "kl_coef"), 0.0),
        **dict.fromkeys(
            ("verifier_timeouts", "verifier_errors", "policy_version", "skipped_steps", "epoch"), 0
        ),
        **dict.fromkeys(("accuracy", "kl_to_ref")),
        "history": "",
        "fingerprint": {},
        "timing": StepTiming(**TIMING, num_reused_rollouts=0),
    }
    return StepRow(step=step, attempt=attempt, **{**plain, **fields})
