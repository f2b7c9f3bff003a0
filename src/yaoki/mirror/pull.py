"""Restores a run from its URL onto a machine that does not have it.

The run is assembled in a folder of its own, every byte is verified, and then it is moved into place, run.json
first. After a crash the next fetch reuses what is there, or completes the move.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import xxhash

from yaoki import fs
from yaoki.checkpoint.chunks import ChunkDigester
from yaoki.checkpoint.layout import MANIFEST
from yaoki.checkpoint.manifest import parse_manifest
from yaoki.checkpoint.verify import require_digests
from yaoki.errors import CorruptCheckpointError
from yaoki.journal.layout import parse_segment
from yaoki.mirror import layout
from yaoki.mirror.remote import PIECE_BYTES, Remote

_PARTIAL = Path("logs") / "fetching"
"""Where the run is assembled; in logs/, which is never copied and may exist before the run does."""
_WHOLE = Path("logs") / "fetched"
"""The same folder once it is complete; without run.json in it, the move has begun."""


def fetch(url: str, directory: Path, warn: Callable[[str], None]) -> bool:
    """Put the run at `url` into `directory`, unless there is a run already; returns whether it did.

    Its newest intact checkpoint is fetched, and the journal after it. The caller holds the lock of the
    directory. `warn` receives a message for everything that is damaged and left out.

    Raises CorruptCheckpointError if there are checkpoints but none is intact, YaokiError if the URL fails.
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
    stored = remote.list()
    if layout.RUN not in stored:
        return False
    if whole.is_dir():
        fs.replace_durably(whole, partial)
    _Fetch(remote, stored, partial, warn).all()
    fs.replace_durably(partial, whole)
    _move_in(whole, directory)
    return True


def fetch_config(url: str) -> bytes | None:
    """The config of the run at `url`; None if there is no run."""
    remote = Remote(url)
    return remote.read(layout.CONFIG) if remote.read(layout.RUN) is not None else None


class _Fetch:
    """Assembles a run in `target` from the files that are stored at a URL."""

    def __init__(
        self, remote: Remote, stored: dict[str, int], target: Path, warn: Callable[[str], None]
    ) -> None:
        self._remote = remote
        self._stored = stored
        self._target = target
        self._warn = warn

    def all(self) -> None:
        """Fetch everything; intact checkpoint files of an interrupted fetch are reused."""
        fs.make_directory(self._target)
        for path in sorted(self._target.iterdir()):
            if path.name != layout.CHECKPOINTS:
                fs.remove_tree(path)
        step, rejected = self._newest_checkpoint()
        for old in sorted((self._target / layout.CHECKPOINTS).glob("*")):
            if step is None or old.name != PurePosixPath(layout.checkpoint_folder(step)).name:
                fs.remove_tree(old)
        self._small_files(step)
        for journal_step, names in layout.segment_files(self._stored).items():
            if step is None or journal_step > step:
                for name in names:
                    self._segment(name)
        folders = map(layout.checkpoint_folder, rejected)
        fs.publish(self._target / layout.RECORD, layout.encode_record(self._remote.url, folders))
        for folder in [self._target, *self._target.rglob("*")]:
            if folder.is_dir():
                fs.fsync_directory(folder)

    def _newest_checkpoint(self) -> tuple[int | None, list[int]]:
        """Fetch the newest intact checkpoint; its step, and the steps of damaged ones after it."""
        rejected: dict[int, str] = {}
        for step in reversed(layout.complete_steps(self._stored)):
            try:
                self._checkpoint(step)
            except CorruptCheckpointError as error:
                rejected[step] = error.message
                self._warn(f"not fetched: {error.message}")
            else:
                return step, list(rejected)
        if rejected or layout.SAVED in self._stored:
            reasons = "".join(f"\n  {reason}" for reason in rejected.values())
            raise CorruptCheckpointError(
                f"{self._remote.url} holds a run with checkpoints, but none that can be used:{reasons}",
                hint="put one of them back from a copy, or start a new run with a URL of its own",
            )
        return None, []

    def _checkpoint(self, step: int) -> None:
        """Fetch a checkpoint. CorruptCheckpointError if it is damaged or incomplete."""
        folder, manifest_name = layout.checkpoint_folder(step), layout.manifest_name(step)
        data = self._remote.read(manifest_name) or b""
        manifest = parse_manifest(data, self._url(manifest_name))
        if manifest.step != step:
            raise CorruptCheckpointError(f"it is of step {manifest.step}", path=self._url(manifest_name))
        for file in manifest.files:
            name = f"{folder}/{file.name}"
            if _digests(self._target / name, file.chunk_bytes) == file.xxh3_128:
                continue
            if (found := self._stored.get(name, "no")) != file.size_bytes:
                raise CorruptCheckpointError(
                    f"it has {found} bytes, not {file.size_bytes}", path=self._url(name)
                )
            digests = ChunkDigester(file.chunk_bytes)
            self._download(name, digests.update)
            require_digests(self._url(name), digests.hexdigests(), file)
        target = self._target / folder / MANIFEST
        fs.make_directory(target.parent)
        fs.publish(target, data)

    def _segment(self, name: str) -> None:
        """Fetch a segment of the journal, unless it is damaged."""
        segment = parse_segment(PurePosixPath(name).name)
        assert segment is not None
        digest = xxhash.xxh3_128()
        self._download(name, digest.update)
        if digest.hexdigest() != segment.digest:
            fs.remove_file(self._target / name)
            self._warn(
                f"not fetched, its rollouts are sampled again: {self._url(name)}: its bytes have the digest "
                f"{digest.hexdigest()}, not the one in its name"
            )

    def _download(self, name: str, update: Callable[[bytes], object]) -> None:
        """Write a file, and pass its bytes to `update`."""
        target = self._target / name
        fs.make_directory(target.parent)
        fs.remove_file(target)
        with fs.create_durably(target) as file:
            for piece in self._remote.pieces(name, self._stored[name]):
                update(piece)
                file.write(piece)

    def _small_files(self, step: int | None) -> None:
        for name in self._small_names():
            data = self._remote.read(name)
            if data is not None:
                self._write(name, data)
        metrics = self._remote.read(layout.METRICS) or b""
        if step is not None:  # with the rows that its checkpoint was made with
            kept = self._remote.read(f"{layout.checkpoint_folder(step)}/{layout.METRICS}") or b""
            metrics = metrics if metrics.startswith(kept) else kept
        self._write(layout.METRICS, metrics)

    def _small_names(self) -> Iterator[str]:
        """run.json last."""
        files = {*layout.BASE_FILES, *layout.LATER_FILES} - {layout.RUN}
        folders = (layout.BASE_FOLDER, layout.LATER_FOLDER)
        for name in self._stored:
            if name in files or any(layout.in_folder(name, folder) for folder in folders):
                yield name
        yield layout.RUN

    def _write(self, name: str, data: bytes) -> None:
        fs.make_directory((self._target / name).parent)
        fs.publish(self._target / name, data)

    def _url(self, name: str) -> str:
        return f"{self._remote.url}/{name}"


def _move_in(whole: Path, directory: Path) -> None:
    """Move everything, run.json first: from then on there is a run, and the next fetch completes the move."""
    for source in sorted(whole.iterdir(), key=lambda path: (path.name != layout.RUN, path.name)):
        target = directory / source.name
        for path in (target, target.with_name(target.name + fs.TRASH_SUFFIX)):
            if path.is_dir():
                fs.remove_tree(path)  # from a run that was never completely created
        fs.replace_durably(source, target)
    fs.remove_tree(whole)


def _digests(path: Path, chunk_bytes: int) -> str | None:
    """Digests of the chunks of a file; None if there is none."""
    digests = ChunkDigester(chunk_bytes)
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                digests.update(piece)
    except FileNotFoundError:
        return None
    return digests.hexdigests()
