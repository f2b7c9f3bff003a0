"""`yaoki plan`: what a run will take, and which settings help if it does not fit a GPU."""

from dataclasses import asdict
from typing import Annotated

import typer

from yaoki.cli.options import JsonOption, WordsArgument, split_words
from yaoki.cli.render import duration, json_text, size, table
from yaoki.commands.footprint import Memory, Network, Plan
from yaoki.config.load import load_config
from yaoki.config.schema import Config
from yaoki.errors import UsageError


def plan(
    words: WordsArgument = None,
    workers: Annotated[int, typer.Option("--workers", help="Workers that share the state.", min=1)] = 1,
    disk_gb_per_s: Annotated[
        float, typer.Option("--disk-gb-per-s", help="Disk bandwidth, 10^9 bytes a second.", min=0.001)
    ] = 1.0,
    gpu_gb: Annotated[
        float | None,
        typer.Option("--gpu-gb", help="Memory of one GPU, 10^9 bytes; warn if it is less.", min=0),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a run will take: parameters, memory of each worker, checkpoints, journal. Starts nothing."""
    recipe, overrides = split_words(words or [])
    if not words:
        raise UsageError("no recipe given", hint="name one: yaoki plan recipes/orz_7b.toml --workers 8")
    config = load_config(recipe, overrides)
    from yaoki.commands.plan import plan_run

    found = plan_run(config, num_workers=workers, disk_gb_per_s=disk_gb_per_s)
    if as_json:
        print(json_text(_totals(found, gpu_gb)))
        return
    print(_describe(found, disk_gb_per_s))
    if gpu_gb is not None and config.engine.type == "vllm":
        share_gb = config.engine.gpu_memory_utilization * gpu_gb
        print(f"\nvLLM may take {share_gb:g} GB of each GPU (engine.gpu_memory_utilization)", end="")
        print("" if found.memory.engine_weights_bytes < share_gb * 1e9 else ": too little for its weights")
    if gpu_gb is not None and not _fits(found, gpu_gb):
        print(f"\n{_warning(found.memory, config, gpu_gb)}")


def _totals(found: Plan, gpu_gb: float | None) -> dict[str, object]:
    """The plan with the sums over its memory."""
    memory = found.memory
    totals = {
        "generating_bytes": memory.generating_bytes,
        "pushing_bytes": memory.pushing_bytes,
        "updating_bytes": memory.updating_bytes,
        "peak_bytes": memory.peak_bytes,
    }
    fits = None if gpu_gb is None else _fits(found, gpu_gb)
    return asdict(found) | {"memory": asdict(memory) | totals, "fits": fits}


def _fits(found: Plan, gpu_gb: float) -> bool:
    return found.memory.peak_bytes <= gpu_gb * 1e9


def _describe(found: Plan, disk_gb_per_s: float) -> str:
    """The plan on one screen; estimates say "about"."""
    workers = "1 worker" if found.num_workers == 1 else f"{found.num_workers} workers"
    lines = [
        ("run", f"{found.algorithm} on {workers}"),
        ("policy", _network(found.policy)),
        ("critic", "none" if found.critic is None else _network(found.critic)),
        (
            "checkpoint",
            f"{size(found.checkpoint_bytes)}, {_time(found.checkpoint_s)} at {disk_gb_per_s:g} GB/s",
        ),
        ("start", f"{size(found.start_host_bytes)} of host memory, on rank 0"),
        ("tokens", f"at most {found.max_tokens:,} a step, in {found.num_completions:,} completions"),
        ("journal", f"at most about {size(found.max_journal_bytes)} a step"),
    ]
    return f"{table(lines)}\n\n{table(_memory_rows(found.memory))}"


def _network(network: Network) -> str:
    return f"{network.num_parameters:,} parameters ({network.source})"


def _time(seconds: float) -> str:
    return "less than 1 s" if seconds < 1 else duration(seconds)


def _memory_rows(memory: Memory) -> list[tuple[str, str, str]]:
    learner = "updating" if memory.learner_offloads else "always"
    engine = "generating" if memory.engine_sleeps else "always"
    rows = [
        ("memory of each worker", "about", "when"),
        ("weights", size(memory.weights_bytes), learner),
        ("moments", size(memory.moments_bytes), learner),
        ("reference", size(memory.reference_bytes), learner),
        ("the engine's copy of the policy", size(memory.engine_weights_bytes), engine),
        ("keys and values", size(memory.cache_bytes), "generating"),
        ("gradients", size(memory.gradients_bytes), "updating"),
        ("gathered weights and gradients", size(memory.gathered_bytes), "updating"),
        ("activations and logits", size(memory.activations_bytes), "updating"),
        ("at the peak", size(memory.peak_bytes), _peak_time(memory)),
    ]
    return [row for row in rows if row[1] != size(0)]


def _peak_time(memory: Memory) -> str:
    phases = {
        "generating": memory.generating_bytes,
        "pushing weights": memory.pushing_bytes,
        "updating": memory.updating_bytes,
    }
    return max(phases, key=lambda phase: phases[phase])


def _warning(memory: Memory, config: Config, gpu_gb: float) -> str:
    """The peak, and the settings that reduce its largest part."""
    phase, parts = _peak_time(memory), []
    if phase != "generating" or not memory.learner_offloads:
        offload = ["train.offload=true"] if phase == "generating" else []
        parts.append((memory.learner_bytes, [*offload, "more workers"]))
    if phase != "updating" or not memory.engine_sleeps:
        smaller = "a larger engine.tensor_parallel" if memory.engine_sleeps else "engine.type=vllm"
        parts.append((memory.engine_weights_bytes, [smaller]))
    if phase == "generating":
        parts.append((memory.cache_bytes, ["a smaller engine.batch_size", "a smaller engine.max_new_tokens"]))
    if phase == "updating":
        parts.append((memory.update_bytes, _for_a_smaller_update(config)))
    _, advice = max(parts)
    return (
        f"warning: about {size(memory.peak_bytes)} at the peak do not fit into {gpu_gb:g} GB; "
        f"what helps most: {', '.join(advice)}"
    )


def _for_a_smaller_update(config: Config) -> list[str]:
    """Settings that are not used yet, the cheapest first."""
    train, longest_row = config.train, config.data.max_prompt_tokens + config.engine.max_new_tokens
    advice = {
        "train.precision=bfloat16": train.precision == "float32",
        "train.activation_checkpointing=true": not train.activation_checkpointing,
        "a smaller train.micro_batch_tokens": train.micro_batch_tokens > longest_row,
        "a smaller engine.max_new_tokens": True,
    }
    return [text for text, helps in advice.items() if helps]
