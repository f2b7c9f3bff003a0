"""Every setting of a run: frozen sections, a docstring and bounds on every field, ORZ's values as defaults.

`on_resume` on a field says what a change means for a run that already exists: `free` (may change at
any time), `trajectory` (the default: the run would take another path) or `state` (what is saved
would no longer fit).
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from yaoki.config.algorithm import AlgorithmConfig, KLConfig
from yaoki.config.engine import EngineConfig
from yaoki.config.fields import FREE, STATE, Count, Positive, Section
from yaoki.config.networks import CriticConfig, PolicyConfig


class RunConfig(Section):
    """Where and how the process runs."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=FREE)
    """Device for learner and engine; `auto` takes CUDA when there is one. Another device kind than the one
    before is an elastic resume: same state, other rounding."""
    num_threads: Count = Field(0, json_schema_extra=FREE)
    """CPU threads for tensor work; 0 leaves torch's own choice. The count changes the last bits of sums, so
    resuming with another one is not graded exact."""
    deterministic: bool = Field(True, json_schema_extra=FREE)
    """Use deterministic algorithms only; needed for the grade exact."""
    max_seconds: float = Field(0.0, ge=0, json_schema_extra=FREE)
    """Wall-time budget of one attempt, in seconds: before it is used up, the state is saved and the process
    exits with code 75. 0 means none."""
    min_free_gb: float = Field(1.0, ge=0, json_schema_extra=FREE)
    """Stop, resumable, when the disk of the run directory has less free space than this, in 10^9 bytes."""
    peer_timeout_s: float = Field(600.0, gt=0, json_schema_extra=FREE)
    """Timeout for an unresponsive worker, in seconds. A worker that is known to be lost is an error at once.
    Must be longer than the workers differ in generating. While rank 0 loads a model or fetches a run, the
    others wait as long as it takes."""
    storage: str = Field("", json_schema_extra=FREE)
    """An fsspec URL such as `s3://bucket/runs/my-run` that the run is copied to while it goes on, and from
    which it is fetched where its directory is missing. Credentials come from the environment. Empty means
    none."""
    storage_every_s: float = Field(5.0, gt=0, json_schema_extra=FREE)
    """How often the copy at `run.storage` is brought up to date, in seconds."""
    show_samples_every: Count = Field(20, json_schema_extra=FREE)
    """Steps between sample completions on the console; 0 means never."""


class TrainConfig(Section):
    """The batch of a step, and how it is computed."""

    seed: int = Field(0, ge=0, json_schema_extra=STATE)
    """Root of every random choice."""
    steps: Positive = Field(1000, json_schema_extra=FREE)
    """Train until this many steps are done. Raising it continues a finished run."""
    num_prompts: Positive = 128
    """Prompts per step."""
    group_size: Positive = 64
    """Completions sampled per prompt."""
    update_epochs: Positive = 1
    """Passes over one batch of experience."""
    freeze_policy_steps: Count = 0
    """Critic warm-up: train only the critic for so many steps (algorithms with a critic only)."""
    offload: bool = Field(False, json_schema_extra=FREE)
    """Offload weights, moments and the reference to host memory while completions are sampled, for a device
    that is too small for both. Costs two copies a step; the same bits."""
    micro_batch_tokens: Positive = 16384
    """Token budget (padding included) of one forward/backward. Changes memory and rounding only."""
    on_nonfinite: Literal["stop", "skip"] = Field("stop", json_schema_extra=FREE)
    """A loss or a gradient that is not finite: stop with an error and never save that step, or skip that
    optimizer step, count it and continue."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What forward and backward passes compute in. Weights, moments and sums of gradients stay float32."""
    activation_checkpointing: bool = Field(False, json_schema_extra=FREE)
    """Recompute the activations of each layer in the backward pass: less memory, about a third more time, the
    same bits."""


class DataConfig(Section):
    """Tasks, prompts and the verifier."""

    files: tuple[Path, ...] = Field((), json_schema_extra=FREE)
    """Training files. On resume the dataset's digest is compared, not its path."""
    format: Literal["auto", "orz", "orz_eval", "gsm8k", "jsonl", "parquet"] = Field(
        "auto", json_schema_extra=FREE
    )
    """Form of the files; `auto` looks at name and content."""
    problem_column: str = Field("problem", min_length=1, json_schema_extra=FREE)
    """Column of the problem in JSONL and Parquet files."""
    answer_column: str = Field("answer", min_length=1, json_schema_extra=FREE)
    """Column of the reference answer in JSONL and Parquet files."""
    on_bad_row: Literal["error", "skip"] = Field("error", json_schema_extra=FREE)
    """On a row that cannot be read: stop before training, or skip and count it."""
    family: Literal["", "arithmetic", "countdown"] = Field("", json_schema_extra=STATE)
    """Generated task family, instead of files."""
    tasks_per_epoch: Positive = Field(4096, json_schema_extra=STATE)
    """Length of an epoch of a generated family; every epoch has fresh tasks."""
    template: str = Field("orz", min_length=1)
    """`orz`, `short` (tiny models), or the path of a Jinja file that uses `problem`."""
    max_prompt_tokens: Positive = Field(2048, json_schema_extra=STATE)
    """Longer prompts are counted and dropped before training, never cut."""
    verifier: str = Field("math", min_length=1)
    """`math`, `countdown`, or `package.module:attribute` of your own."""
    verifier_workers: Positive = Field(1, json_schema_extra=FREE)
    """Worker processes that judge answers."""
    verifier_time_limit_s: float = Field(5.0, gt=0, le=300)
    """Hard limit per answer, in seconds; an answer that takes longer scores 0."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == bool(self.family):
            raise ValueError(
                "data.files and data.family: exactly one names the tasks; "
                'set data.files=["train.json"] or data.family="arithmetic", not both'
            )
        return self

    @model_validator(mode="after")
    def _verifier_fits_family(self) -> Self:
        judges = {"arithmetic": "math", "countdown": "countdown"}
        judge = judges.get(self.family, self.verifier)
        if self.verifier in judges.values() and self.verifier != judge:
            raise ValueError(
                f"data.family and data.verifier: {self.verifier} cannot judge {self.family}; "
                f'set data.verifier="{judge}"'
            )
        return self


class EvalConfig(Section):
    """Held-out accuracy during training."""

    every_steps: Count = Field(10, json_schema_extra=STATE)
    """Steps between evaluations, which begin before the first step; 0 means never."""
    files: tuple[Path, ...] = Field((), json_schema_extra=FREE)
    """Evaluation files; a generated family brings its own held-out tasks."""
    num_tasks: Positive = Field(256, json_schema_extra=STATE)
    """Largest number of tasks, from the front."""
    num_samples: Positive = Field(1, json_schema_extra=STATE)
    """Completions per task; accuracy is their mean (pass@1)."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: Count = Field(10, json_schema_extra=FREE)
    """Steps between checkpoints; one more is saved at the end, and on a stop. 0 means only these."""
    keep_last: Positive = Field(2, json_schema_extra=FREE)
    """Newest checkpoints to keep."""
    keep_every: Count = Field(0, json_schema_extra=FREE)
    """Also keep every checkpoint whose step is a multiple of this; 0 means none."""
    keep_best: Count = Field(0, json_schema_extra=FREE)
    """Also keep this many of the best by held-out accuracy."""
    on_overrun: Literal["wait", "copy"] = Field("wait", json_schema_extra=FREE)
    """If the next update is due while a checkpoint is still being written: wait for the writer, or copy the
    unwritten rest into memory."""
    copy_memory_gb: float = Field(8.0, gt=0, json_schema_extra=FREE)
    """Largest memory for such copies, in 10^9 bytes; beyond it, wait."""


class JournalConfig(Section):
    """The write-ahead log of rollouts: what was sampled is on disk before it is trained on."""

    enabled: bool = Field(True, json_schema_extra=FREE)
    """Write rollouts to disk as they finish; without it a resume samples the steps after the checkpoint
    again."""
    flush_seconds: float = Field(5.0, ge=0, json_schema_extra=FREE)
    """Longest time that a finished micro-batch waits before it is written, in seconds."""
    flush_rollouts: Positive = Field(64, json_schema_extra=FREE)
    """Number of waiting rollouts that are written at once."""
    keep: str = Field("needed", pattern="^(needed|all|every [1-9][0-9]*)$", json_schema_extra=FREE)
    """`needed` keeps what a resume from a retained checkpoint may need; `all` keeps every step as a data set;
    `every N` keeps those of steps that are a multiple of N."""


class ResumeConfig(Section):
    """How a resume handles contradictions."""

    on_divergence: Literal["stop", "warn"] = Field("stop", json_schema_extra=FREE)
    """If a step that was trained before comes out with other bits: stop with an error, or warn and
    continue."""


class Config(Section):
    """One run, whole."""

    run: RunConfig = Field(default_factory=RunConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    data: DataConfig
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    critic: CriticConfig = Field(default_factory=CriticConfig)
    kl: KLConfig = Field(default_factory=KLConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    journal: JournalConfig = Field(default_factory=JournalConfig)
    resume: ResumeConfig = Field(default_factory=ResumeConfig)

    @model_validator(mode="after")
    def _networks_fit(self) -> Self:
        for name, network in (("policy", self.policy), ("critic", self.critic)):
            if network.init_from == "builtin:tiny" and not self.data.family:
                raise ValueError(
                    f"{name}.init_from and data.family: builtin:tiny is pre-trained on a generated family; "
                    f'set data.family="arithmetic", {name}.init_from="builtin:tiny-random" or a model\'s path'
                )
            if network.schedule == "linear" and network.decay_steps <= network.warmup_steps:
                raise ValueError(
                    f"{name}.schedule and {name}.decay_steps: a linear schedule needs decay_steps above "
                    f"warmup_steps ({network.warmup_steps}), not {network.decay_steps}; "
                    f"set {name}.decay_steps, usually to train.steps"
                )
            if network.schedule == "linear" and network.min_lr > network.lr:
                raise ValueError(
                    f"{name}.lr and {name}.min_lr: a linear schedule goes down to its floor; "
                    f"set {name}.min_lr to {name}.lr ({network.lr}) or less, not {network.min_lr}"
                )
        return self
