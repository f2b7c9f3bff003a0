"""The row of one step in metrics.jsonl: every number that a run records about itself, with what it means.

The docstrings below are also the page docs/metrics.md, which `python -m yaoki.journal.step_row` prints.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

CLOCK_FIELDS = ("timing", "attempt")
"""Fields of a row that an exact resume does not reproduce."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class StepTiming(_Record):
    """Where the time of a step went, in seconds of wall time on rank 0."""

    evaluate_s: float
    """Measuring held-out accuracy, if it was due."""
    generate_s: float
    """Sampling and judging completions, or finding them in the journal."""
    journal_s: float
    """Waiting until the rollouts were durable."""
    score_s: float
    """Log-probabilities and values of the rollouts under the current weights, and advantages."""
    update_s: float
    """Forward and backward passes and optimizer steps."""
    sync_s: float
    """Pushing the weights to the engine and verifying them."""
    fingerprint_s: float
    """Digesting the state."""
    step_s: float
    """The whole step, without `checkpoint_s`."""
    checkpoint_s: float
    """Time that training waited for checkpoints since the row before."""
    train_s: float
    """Training time of the run so far, over all attempts, of the steps that count."""
    num_reused_rollouts: int
    """Rollouts of this step that were taken from the journal."""
    rollout_tokens_per_s: float
    """Newly sampled response tokens per second of `generate_s`."""
    tokens_per_s: float
    """Response tokens of the step per second of `step_s`."""


class StepRow(_Record):
    """What one step did. Fields that do not apply to a run, such as the critic's of GRPO, are absent."""

    step: int
    """Number of the step, from 1: it takes the state of checkpoint step - 1 to that of checkpoint step."""
    attempt: int
    """Which attempt (process lifetime) of the run did it, from 1."""
    reward: float
    """Mean reward of the step's rollouts."""
    pass_at_n: float
    """Share of the prompts with at least one correct completion in their group."""
    length: float
    """Mean response length in tokens."""
    length_correct: float | None
    """The same over correct completions; null if there are none."""
    length_incorrect: float | None
    """The same over the others; null if there are none."""
    truncated: float
    """Share of completions that were cut off by engine.max_new_tokens, which score 0."""
    has_format: float
    """Share of completions of exactly the asked form: thoughts, `</think>`, one answer block with an
    answer."""
    repetition: float
    """Mean share of 4-grams of tokens that occurred earlier in the same completion, in [0, 1)."""
    reflection_words: float
    """Mean number per completion of the words wait, recheck, retry, alternatively and however."""
    verifier_timeouts: int
    """Answers on which the verifier ran into its time limit; they score 0."""
    verifier_errors: int
    """Answers on which the verifier failed; they score 0."""
    logprob_gap_mean: float
    """Mean absolute difference between the learner's and the engine's log-probability of a sampled token, in
    nats."""
    logprob_gap_max: float
    """The largest of these differences: rounding, unless something is wrong."""
    value: float | None = None
    """Mean of the critic's values before the update."""
    explained_variance: float | None = None
    """1 - Var(returns - values) / Var(returns) before the update: 1 perfect, 0 useless, negative
    worse than a constant."""
    policy_loss: float | None = None
    """Loss of the policy, averaged over its optimizer steps."""
    policy_entropy: float | None = None
    """Mean entropy of the policy at response tokens, in nats."""
    policy_clip_fraction: float | None = None
    """Share of tokens on which the clip stopped the gradient."""
    policy_approx_kl: float | None = None
    """Mean over tokens of KL(old policy || policy) at the time of each optimizer step (k3 estimate), in nats;
    about 0 with one optimizer step per batch."""
    policy_grad_norm: float | None = None
    """Norm of the policy's gradient before clipping."""
    policy_lr: float | None = None
    """Learning rate of the policy."""
    critic_loss: float | None = None
    """Loss of the critic, averaged over its optimizer steps."""
    critic_grad_norm: float | None = None
    """Norm of the critic's gradient before clipping."""
    critic_lr: float | None = None
    """Learning rate of the critic."""
    policy_version: int
    """Number of updates that the policy which sampled the rollouts had seen."""
    skipped_steps: int
    """Optimizer steps skipped because a loss or a gradient was not finite (`train.on_nonfinite = "skip"`)."""
    kl_coef: float
    """Weight of the KL term in this step."""
    epoch: int
    """Epoch of the data after this step's prompts, from 0."""
    accuracy: float | None
    """Held-out accuracy before this step's update (pass@1), null if it was not due."""
    kl_to_ref: float | None
    """Mean KL(policy || reference) per token before the update, in nats; null without a reference."""
    history: str
    """Digest chain of the environments of all steps so far. Rows of equal step and history must have equal
    bits."""
    fingerprint: dict[str, str]
    """Digest of the step's rollouts, and of every part of the state after the step that an exact resume
    reproduces."""
    timing: StepTiming
    """Everything that depends on the clock."""

    def to_json(self) -> dict[str, Any]:
        """The row as it is in metrics.jsonl, without absent fields."""
        return self.model_dump(exclude_unset=True)

    def scalars(self) -> Iterator[tuple[str, float]]:
        """Every number with its name, those of `timing` as `timing/NAME`; for trackers that draw curves."""
        row = self.to_json()
        timing = {f"timing/{name}": value for name, value in row.pop("timing").items()}
        for name, value in (row | timing).items():
            if isinstance(value, int | float) and name not in ("step", "attempt"):
                yield name, value


def reference() -> str:
    """docs/metrics.md: what every number of a row means."""
    lines = [
        "# What the numbers mean",
        "",
        "<!-- Generated by `python -m yaoki.journal.step_row`; do not edit. -->",
        "",
        "One row per step in `metrics.jsonl`; the same numbers go to every tracker, such as TensorBoard.",
    ]
    for record, prefix in ((StepRow, ""), (StepTiming, "timing.")):
        lines += [
            "",
            f"## {record.__name__}",
            "",
            f"{record.__doc__}",
            "",
            "| field | meaning |",
            "|---|---|",
        ]
        for name, field in record.model_fields.items():
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{prefix}{name}` | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
