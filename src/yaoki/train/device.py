"""The device of a rank, and the facts about it that the bits of a run depend on."""

import torch

from yaoki.config.schema import Config
from yaoki.errors import UsageError
from yaoki.ranks.world import World
from yaoki.runs.environment import Environment, cpu_name, software


def device_type(config: Config) -> str:
    """The kind of device that the config asks for, `cpu` or `cuda`. UsageError if there is none."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device is cuda, but torch sees no CUDA device", hint='set run.device="cpu"')
    return "cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu"


def choose_device(config: Config, world: World) -> torch.device:
    """This rank's device."""
    kind = device_type(config)
    return torch.device(kind, world.local_rank) if kind == "cuda" and world.size > 1 else torch.device(kind)


def require_whole_engines(config: Config, world: World) -> None:
    """UsageError if the ranks cannot share engines as the config asks."""
    if world.size % (shared_by := config.engine.tensor_parallel):
        raise UsageError(
            f"engine.tensor_parallel is {shared_by}, and does not divide the number of workers, {world.size}",
            hint="start with a multiple of it, such as --workers "
            f"{shared_by * (world.size // shared_by + 1)}; or set engine.tensor_parallel=1",
        )


def environment(config: Config, device: torch.device, world: World) -> Environment:
    """What the bits of this attempt depend on, besides the config's trajectory."""
    facts = software() | {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "num_devices": torch.cuda.device_count(),
        "num_threads": torch.get_num_threads(),
        "num_workers": world.size,
        "deterministic": config.run.deterministic and config.engine.traits.is_deterministic,
    }
    if config.engine.traits.is_shared:
        facts["tensor_parallel"] = config.engine.tensor_parallel
    return facts
