"""Power cuts for real: a loop-mounted ext4 image, copied after each effect; each copy is mounted and checked.

Skipped, with the reason, where mounting is not allowed.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import yaoki.fs

from .children import Acknowledge
from .effects import Entry
from .ext4 import CannotMount, commit_journal, copy_image, make_image, mounted
from .recorder import Recorder
from .run_scenarios import StepEnd

NUM_SAMPLED = 15
SCENARIO = StepEnd()
Work = Callable[[Path, Acknowledge], None]


@dataclass(frozen=True)
class Cut:
    """What had reached the disk, and what had been promised."""

    image: Path
    where: str
    promises: tuple[str, ...]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    try:
        return make_image(tmp_path / "disk.img")
    except CannotMount as reason:
        pytest.skip(f"no power cuts on ext4: {reason}")


def cut_everywhere(
    image: Path,
    prepare: Callable[[Path], None],
    work: Work,
    *,
    with_bystander: bool,
    chosen: Callable[[], bool],
) -> Iterator[Cut]:
    """Prepare, make that durable, then do the work; an image for each chosen effect, and one for the end."""
    cuts: list[Cut] = []
    promises: list[str] = []

    with mounted(image, image.parent / "disk") as disk:
        root = disk / "run"
        root.mkdir()
        prepare(root)
        os.sync()

        def copy(where: str) -> None:
            target = image.parent / f"cut-{len(cuts)}.img"
            cuts.append(Cut(copy_image(image, target), where, tuple(promises)))

        def after_each(entry: Entry) -> None:
            if entry.promise:
                promises.append(entry.promise)
            if with_bystander:
                commit_journal(disk)
            if chosen():
                copy(str(entry.effect))

        recorder = Recorder(root, after_each=after_each, really_syncs=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(yaoki.fs, "os", recorder)
            work(root, recorder.promise)
        copy("the end")
    yield from cuts


def check_all(cuts: Iterator[Cut], check: Callable[[Path, list[str]], object]) -> int:
    """Mount each image and check it; returns how many there were."""
    number = 0
    for cut in cuts:
        number += 1
        with mounted(cut.image, cut.image.with_suffix("")) as disk:
            try:
                check(disk / "run", list(cut.promises))
            except Exception as error:
                names = sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
                raise AssertionError(f"power cut after {cut.where}: {names}") from error
        cut.image.unlink()
    return number


@pytest.mark.parametrize("with_bystander", [False, True])
def test_a_step_to_its_end(image: Path, with_bystander: bool) -> None:
    randomness = random.Random(0)
    cuts = cut_everywhere(
        image,
        SCENARIO.prepare,
        SCENARIO.work,
        with_bystander=with_bystander,
        chosen=lambda: randomness.random() < NUM_SAMPLED / 60,
    )
    assert check_all(cuts, SCENARIO.check) >= 2


@pytest.mark.crash
@pytest.mark.parametrize("with_bystander", [False, True])
def test_a_step_to_its_end_with_every_cut(
    image: Path, with_bystander: bool, record_property: Callable[[str, object], None]
) -> None:
    cuts = cut_everywhere(
        image, SCENARIO.prepare, SCENARIO.work, with_bystander=with_bystander, chosen=lambda: True
    )
    found = check_all(cuts, SCENARIO.check)
    name = f"{SCENARIO.name}: real power cut on ext4{', others sync' if with_bystander else ''}"
    record_property("power cuts", {"scenario": name, "cuts": found})


def replace_without_sync(root: Path, acknowledge: Acknowledge) -> None:
    """What many programs do."""
    os_ = yaoki.fs.os
    descriptor = os_.open(root / "new.tmp", os.O_WRONLY | os.O_CREAT, 0o644)
    os_.write(descriptor, b"x" * 5000)
    os_.close(descriptor)
    os_.replace(root / "new.tmp", root / "new")
    acknowledge("new")


@pytest.mark.parametrize(("with_bystander", "left"), [(False, None), (True, b"")])
def test_the_sweep_can_find_a_loss(image: Path, with_bystander: bool, left: bytes | None) -> None:
    """Without a sync the file is gone after the power cut, or empty once its name is durable."""
    found = []
    cuts = cut_everywhere(
        image, lambda root: None, replace_without_sync, with_bystander=with_bystander, chosen=lambda: True
    )

    def look(root: Path, promises: list[str]) -> None:
        path = root / "new"
        found.append((promises, path.read_bytes() if path.exists() else None))

    assert check_all(cuts, look) == 5
    assert found[-1] == (["new"], left)
