"""What is left of an acknowledged checkpoint when the power goes: Yaoki beside others, on a real ext4.

    python -m benchmarks.power_cuts                 needs root, loop devices and strace; about a minute
    python -m benchmarks.power_cuts --only Yaoki

A process saves step 2, says so, removes step 1, saves step 3, says so, removes step 2. It is stopped after
each system call that changes its disk, and the disk's image is copied: that is what a power cut would leave.
Each copy is mounted, and the newest checkpoint that loads is compared with what had been acknowledged. This
is done twice: once where nobody else uses the disk, and once where another program syncs a file of its own
each time, which makes all names durable, but not the bytes behind them.
"""

import argparse
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from tests.faults.ext4 import CannotMount, commit_journal, copy_image, make_image, mounted
from tests.support.snapshots import INFO
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.retention import Policy

STEPS = (2, 3)
SYSTEM_CALLS = (
    "openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,fallocate,copy_file_range,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
ACKNOWLEDGED = re.compile(r'write\(.*"acknowledged (\d+)')

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Protocol:
    """A way to save: everything goes below one directory."""

    name: str
    save: Callable[[Path, int], None]
    remove: Callable[[Path, int], None]
    """After a later step was saved."""
    candidates: Callable[[Path], list[Path]]
    """What may be loaded, newest first."""
    load: Callable[[Path], State]


@dataclass(frozen=True)
class Cut:
    """What had reached the disk after a system call."""

    image: Path
    acknowledged: int


def state(step: int) -> State:
    """Three tensors that say which step they are of, 400 KB together."""
    return {f"layer.{index}": torch.full((32768 + index,), float(step)) for index in range(3)}


def newest_first(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda root: sorted(root.glob(pattern), reverse=True)


def torch_save(path: Path, step: int, *, sync: bool = False) -> None:
    """To a temporary name, then renamed."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        torch.save(state(step), file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    unfinished.replace(path)


def dcp_save(path: Path, step: int) -> None:
    dcp.save(state(step), checkpoint_id=path, no_dist=True)


def dcp_load(path: Path) -> State:
    found = state(0)
    dcp.load(found, checkpoint_id=path, no_dist=True)
    return found


def yaoki_save(root: Path, step: int) -> None:
    snapshot = Snapshot({"policy": PartState(Scope.GLOBAL, state(step), json={"step": step})})
    CheckpointStore(root).save(snapshot, step=step, info=INFO)


def yaoki_candidates(root: Path) -> list[Path]:
    return [candidate.path for candidate in Catalog(root).candidates()]


def keep(root: Path, step: int) -> None:
    """Nothing to remove: it was overwritten."""


PROTOCOLS = (
    Protocol(
        "torch.save in place",
        lambda root, step: torch.save(state(step), root / "last.pt"),
        keep,
        newest_first("last.pt"),
        torch.load,
    ),
    Protocol(
        "torch.save, rename",
        lambda root, step: torch_save(root / f"step-{step}.pt", step),
        lambda root, step: (root / f"step-{step}.pt").unlink(),
        newest_first("step-*.pt"),
        torch.load,
    ),
    Protocol(
        "torch.save, fsync, rename",
        lambda root, step: torch_save(root / f"step-{step}.pt", step, sync=True),
        lambda root, step: (root / f"step-{step}.pt").unlink(),
        newest_first("step-*.pt"),
        torch.load,
    ),
    Protocol(
        "DCP, same directory",
        lambda root, step: dcp_save(root / "last", step),
        keep,
        newest_first("last"),
        dcp_load,
    ),
    Protocol(
        "DCP, new directory",
        lambda root, step: dcp_save(root / f"step-{step}", step),
        lambda root, step: shutil.rmtree(root / f"step-{step}"),
        newest_first("step-*"),
        dcp_load,
    ),
    Protocol(
        "Yaoki",
        yaoki_save,
        lambda root, _: CheckpointStore(root).prune(Policy(keep_last=1)) and None,
        yaoki_candidates,
        lambda path: dict(load(path).parts["policy"].tensors),
    ),
)


def work(protocol: Protocol, root: Path, say: Callable[[int], None]) -> None:
    """Save, acknowledge, remove."""
    for step in STEPS:
        protocol.save(root, step)
        say(step)
        protocol.remove(root, step - 1)


def start_worker(protocol: Protocol, root: Path, scratch: Path) -> tuple[int, int]:
    """A process that has done it all elsewhere, and now waits to be told: its id, and where to tell."""
    go_read, go_write = os.pipe()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            protocol.save(scratch, 1)
            work(protocol, scratch, lambda _: None)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.write(ready_write, b"x")
            os.read(go_read, 1)
            work(protocol, root, lambda step: os.write(nothing, f"acknowledged {step}".encode()) and None)
            status = 0
        finally:
            os._exit(status)
    os.close(ready_write)
    if not os.read(ready_read, 1):
        raise RuntimeError(f"{protocol.name} does not work here")
    return child, go_write


def cuts(protocol: Protocol, folder: Path, *, with_bystander: bool) -> Iterator[Cut]:
    """An image for each system call on the disk, in order."""
    image = make_image(folder / "disk.img")
    scratch = folder / "scratch"
    scratch.mkdir()
    with mounted(image, folder / "disk") as disk:
        root = disk / "run"
        root.mkdir()
        protocol.save(root, 1)
        os.sync()
        worker, go = start_worker(protocol, root, scratch)
        acknowledged, number = 1, 0
        try:
            for line in system_calls(worker, go):
                if found := ACKNOWLEDGED.search(line):
                    acknowledged = int(found[1])
                elif str(root) not in line or (" openat(" in line and "O_CREAT" not in line):
                    continue
                if with_bystander:
                    commit_journal(disk)
                number += 1
                yield Cut(copy_image(image, folder / f"cut-{number}.img"), acknowledged)
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


def system_calls(worker: int, go: int) -> Iterator[str]:
    """The worker's calls, by strace, which stops it after each; it goes on when the next is asked for."""
    lines_read, lines_write = os.pipe()
    options = ["-f", "-y", "-s", "64", "-p", str(worker), "-o", f"/proc/self/fd/{lines_write}"]
    options += ["-e", f"trace={SYSTEM_CALLS}", "-e", f"inject={SYSTEM_CALLS}:signal=SIGSTOP"]
    strace = subprocess.Popen(
        ["strace", *options],
        pass_fds=[lines_write],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(lines_write)
    assert strace.stderr is not None
    if "attached" not in strace.stderr.readline():
        raise CannotMount("strace may not attach to a process")
    os.write(go, b"x")
    call = ""
    with os.fdopen(lines_read) as lines:
        for line in lines:
            if "--- stopped by SIGSTOP ---" in line:
                if call:
                    yield call
                call = ""
                os.kill(worker, signal.SIGCONT)
            elif "---" not in line and "+++" not in line:
                call += line
    strace.wait()


def verdict(protocol: Protocol, root: Path, acknowledged: int) -> str:
    """What a user finds after the power cut."""
    for path in protocol.candidates(root):
        try:
            found = protocol.load(path)
        except (Exception, CheckpointException):  # noqa: BLE001 (some raise what is no Exception)
            continue
        step = int(found["layer.0"][0])
        if any(not torch.equal(found[name], right) for name, right in state(step).items()):
            return "loads garbage"
        return "kept" if step >= acknowledged else "lost, an older one loads"
    return "nothing loads"


def sweep(protocol: Protocol, *, with_bystander: bool) -> Counter[str]:
    """Verdicts of all cuts."""
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="power-cuts-") as name:
        for cut in cuts(protocol, Path(name), with_bystander=with_bystander):
            with mounted(cut.image, cut.image.with_suffix("")) as disk:
                verdicts[verdict(protocol, disk / "run", cut.acknowledged)] += 1
            cut.image.unlink()
    return verdicts


def main() -> None:
    """Sweep and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=[protocol.name for protocol in PROTOCOLS])
    chosen = parser.parse_args().only
    if shutil.which("strace") is None:
        sys.exit("strace is not installed")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    kinds = ("kept", "lost, an older one loads", "nothing loads", "loads garbage")
    print(f"torch {torch.__version__}, Linux {os.uname().release}, ext4\n")
    print(f"| protocol | others sync | power cuts | {' | '.join(kinds)} |")
    print(f"|---|---|---:|{'---:|' * len(kinds)}")
    for protocol in PROTOCOLS:
        for with_bystander in (False, True):
            if chosen in (None, protocol.name):
                found = sweep(protocol, with_bystander=with_bystander)
                counts = " | ".join(str(found[kind]) for kind in kinds)
                others = "yes" if with_bystander else "no"
                print(f"| {protocol.name} | {others} | {found.total()} | {counts} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except CannotMount as reason:
        sys.exit(f"no power cuts here: {reason}")
