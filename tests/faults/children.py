"""Forked processes in which a fault befalls the work, so that a death is a real one."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaoki.fs
from yaoki.errors import YaokiError

from .effects import Effect, Fault
from .recorder import Recorder

Acknowledge = Callable[[str], None]
Work = Callable[[Path, Acknowledge], None]

_NOW_S = 1_700_000_000.0


@dataclass
class Ended:
    """What a child said before it ended."""

    acknowledged: list[str] = field(default_factory=list)
    error: str | None = None
    """An error that may surface: a YaokiError, or an OSError that names its file."""
    bug: str | None = None
    """Any other exception."""
    died: bool = False
    struck: bool = False
    effects: list[Effect] = field(default_factory=list)


def run_in_child(root: Path, work: Work, strike: tuple[Effect, Fault] | None = None) -> Ended:
    """Do the work in a process of its own, where the clock stands still, with a recorder under `yaoki.fs`."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _be_the_child(root, work, strike, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    ended = Ended(died=os.WIFSIGNALED(status))
    for line in lines:
        kind, value = json.loads(line)
        match kind:
            case "acknowledged":
                ended.acknowledged.append(value)
            case "effects":
                ended.effects = [Effect(*fields) for fields in value]
            case _:
                setattr(ended, kind, value)
    return ended


def _be_the_child(root: Path, work: Work, strike: tuple[Effect, Fault] | None, pipe: int) -> None:
    def say(kind: str, value: object) -> None:
        os.write(pipe, json.dumps([kind, value]).encode() + b"\n")

    recorder = Recorder(root, strike=strike, on_strike=lambda: say("struck", True))
    time.time = lambda: _NOW_S
    yaoki.fs.os = recorder  # type: ignore[assignment]
    try:
        work(root, lambda what: say("acknowledged", what))
        effects = [entry.effect for entry in recorder.log]
        say("effects", [(effect.kind, effect.path, effect.nth) for effect in effects])
    except YaokiError as error:
        say("error", f"{type(error).__name__}: {error}")
    except OSError as error:
        say("error" if error.filename is not None else "bug", f"{type(error).__name__}: {error}")
    except BaseException as error:  # noqa: BLE001 (the edge of a process)
        say("bug", f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)
