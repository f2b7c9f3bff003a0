"""A run back from its URL, onto a machine that does not have it.

All of it is put together in a folder of its own, each byte checked, and then moved into place, run.json
first; a crash before that leaves something to go on with, a crash after it something to finish. Knows
nothing of what the files mean, but that a checkpoint wants the metrics it was made with.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from yaoki import fs
from yaoki.checkpoint.chunks import ChunkDigester
from yaoki.checkpoint.layout import MANIFEST
from yaoki.checkpoint.manifest import FileEntry, parse_manifest
from yaoki.checkpoint.verify import require_digests
from yaoki.errors import CorruptCheckpointError
from yaoki.journal.layout import parse_segment
from yaoki.mirror import layout
from yaoki.mirror.remote import PIECE_BYTES, Remote

_PARTIAL = Path("logs") / "fetching"
"""In logs/, which is never copied, and which may be there before there is a run."""
_WHOLE = Path("logs") / "fetched"
"""The same when all is there; without run.json in it, the moving has begun."""

Warn = Callable[[str], None]


def fetch(url: str, directory: Path, warn: Warn) -> bool:
    """Put the run at `url` into `directory`, unless there is a run already; says whether it did.

    It comes with its newest checkpoint that is whole and the journal after it. Whoever calls this holds the
    lock of the directory. `warn` hears of what is damaged and was passed over.

    Raises CorruptCheckpointError if there are checkpoints but none is whole, YaokiError if the URL fails.
    """
    whole, partial = directory / _WHOLE, directory / _PARTIAL
    trash = whole.with_name(whole.name + fs.TRASH_SUFFIX)
    if trash.is_dir():
        fs.remove_tree(trash)
    is_moving = whole.is_dir() and not (whole / layout.RUN).exists()
    if (directory / layout.RUN).is_file():
        if is_moving:
            _move_in(whole, directory)
        return is_moving
    remote = Remote(url)
    try:
        there = remote.list()
        if layout.RUN not in there:
            return False
        if whole.is_dir():
            fs.replace_durably(whole, partial)
        _Fetch(remote, there, partial, warn).all()
    finally:
        remote.close()
    fs.replace_durably(partial, whole)
    _move_in(whole, directory)
    return True


def fetch_config(url: str) -> bytes | None:
    """The config of the run at `url`; None if there is no run."""
    remote = Remote(url)
    try:
        return remote.read(layout.CONFIG) if remote.read(layout.RUN) is not None else None
    finally:
        remote.close()


class _Fetch:
    """One run on its way into the folder where it is put together."""

    def __init__(self, remote: Remote, there: dict[str, int], target: Path, warn: Warn) -> None:
        self._remote = remote
        self._there = there
        self._target = target
        self._warn = warn

    def all(self) -> None:
        """Everything; files of a checkpoint that an earlier fetch has left are used if they are right."""
        fs.make_directory(self._target)
        for path in sorted(self._target.iterdir()):
            if path.name != layout.CHECKPOINTS:
                fs.remove_tree(path)
        step, refused = self._newest_checkpoint()
        for old in sorted((self._target / layout.CHECKPOINTS).glob("*")):
            if step is None or old.name != PurePosixPath(layout.checkpoint_folder(step)).name:
                fs.remove_tree(old)
        self._small_files(step)
        for part_step, files in layout.part_files(self._there).items():
            if step is None or part_step > step:
                self._parts(files)
        folders = map(layout.checkpoint_folder, refused)
        fs.publish(self._target / layout.FILE, layout.encode(self._remote.url, folders))
        for folder in [self._target, *self._target.rglob("*")]:
            if folder.is_dir():
                fs.fsync_directory(folder)

    def _newest_checkpoint(self) -> tuple[int | None, list[int]]:
        """The newest that is whole, now in place, and the damaged ones after it."""
        refusals: dict[int, str] = {}
        for step in reversed(layout.complete_steps(self._there)):
            try:
                self._checkpoint(step)
            except CorruptCheckpointError as error:
                refusals[step] = error.message
                self._warn(f"not fetched: {error.message}")
            else:
                return step, list(refusals)
        if refusals or layout.SAVED in self._there:
            reasons = "".join(f"\n  {reason}" for reason in refusals.values())
            raise CorruptCheckpointError(
                f"{self._remote.url} holds a run with checkpoints, but none that can be used:{reasons}",
                hint="put one of them back from a copy, or start a new run with a URL of its own",
            )
        return None, []

    def _checkpoint(self, step: int) -> None:
        url = f"{self._remote.url}/{layout.manifest_name(step)}"
        data = self._remote.read(layout.manifest_name(step))
        manifest = parse_manifest(data or b"", url)
        if manifest.step != step:
            raise CorruptCheckpointError(f"it is of step {manifest.step}", path=url)
        folder = layout.checkpoint_folder(step)
        for file in manifest.files:
            self._checked(f"{folder}/{file.name}", file)
        target = self._target / folder / MANIFEST
        fs.make_directory(target.parent)
        fs.publish(target, data or b"")

    def _parts(self, files: list[str]) -> None:
        for name in files:
            part = parse_segment(PurePosixPath(name).name)
            assert part is not None
            try:
                size_bytes = self._there[name]  # a part has one digest, of all of it
                self._checked(name, FileEntry(name, size_bytes, max(1, size_bytes), part.digest))
            except CorruptCheckpointError as error:
                self._warn(f"not fetched, its rollouts are sampled again: {error.message}")

    def _checked(self, name: str, expected: FileEntry) -> None:
        """Fetch one file. CorruptCheckpointError unless it is there, in this size, with these digests."""
        target = self._target / name
        if target.is_file() and _digests(target, expected.chunk_bytes) == expected.xxh3_128:
            return
        url = f"{self._remote.url}/{name}"
        if self._there.get(name) != expected.size_bytes:
            found = self._there.get(name, "no")
            raise CorruptCheckpointError(f"it has {found} bytes, not {expected.size_bytes}", path=url)
        fs.make_directory(target.parent)
        fs.remove_file(target)
        digests = ChunkDigester(expected.chunk_bytes)
        with fs.create_durably(target) as file:
            for piece in self._remote.pieces(name, expected.size_bytes):
                digests.update(piece)
                file.write(piece)
        try:
            require_digests(url, digests.hexdigests(), expected)
        except CorruptCheckpointError:
            fs.remove_file(target)
            raise

    def _small_files(self, step: int | None) -> None:
        for name in self._small_names():
            data = self._remote.read(name)
            if data is not None:
                self._write(name, data)
        metrics = self._remote.read(layout.METRICS) or b""
        if step is not None:
            kept = self._remote.read(f"{layout.checkpoint_folder(step)}/{layout.METRICS}") or b""
            metrics = metrics if metrics.startswith(kept) else kept
        self._write(layout.METRICS, metrics)

    def _small_names(self) -> Iterator[str]:
        """run.json last."""
        files = {*layout.BASE_FILES, *layout.LATER_FILES} - {layout.RUN}
        folders = (layout.BASE_FOLDER, layout.LATER_FOLDER)
        for name in self._there:
            if name in files or any(layout.in_folder(name, folder) for folder in folders):
                yield name
        yield layout.RUN

    def _write(self, name: str, data: bytes) -> None:
        fs.make_directory((self._target / name).parent)
        fs.publish(self._target / name, data)


def _move_in(whole: Path, directory: Path) -> None:
    """run.json first: from then on there is a run, and the next fetch finishes what is left of this."""
    for source in sorted(whole.iterdir(), key=lambda path: (path.name != layout.RUN, path.name)):
        target = directory / source.name
        for path in (target, target.with_name(target.name + fs.TRASH_SUFFIX)):
            if path.is_dir():
                fs.remove_tree(path)  # the beginning of a run that never was
        fs.replace_durably(source, target)
    fs.remove_tree(whole)


def _digests(path: Path, chunk_bytes: int) -> str:
    digests = ChunkDigester(chunk_bytes)
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digests.update(piece)
    return digests.hexdigests()
