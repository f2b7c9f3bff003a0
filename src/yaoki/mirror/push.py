"""One pass that updates the copy at a URL from a run's directory.

At every instant the copy is a run that can be resumed: files are written before those that refer to them, a
checkpoint's manifest last; removal goes in the opposite order. The directory may change during the pass: what
disappears is left out, what is new is left for the next pass.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import xxhash

from yaoki.checkpoint.layout import MANIFEST
from yaoki.checkpoint.manifest import parse_manifest
from yaoki.checkpoint.verify import check_sizes
from yaoki.errors import CorruptCheckpointError, RefusedError
from yaoki.mirror import layout
from yaoki.mirror.layout import Record
from yaoki.mirror.remote import Remote

_TRIAL = "trial"
"""Written and removed to test the permissions."""


class Copier:
    """Copies one directory to one URL. Nothing else may write to the URL or train the run meanwhile."""

    def __init__(self, directory: Path, remote: Remote, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._remote = remote
        self._warn = warn
        self._record = Record(directory, remote.url)
        self._stored: dict[str, int] = {}
        """Names and sizes of the files at the URL."""
        self._is_listed = False
        """Whether that is known; not during a pass, nor after one that failed."""
        self._small: dict[str, str] = {}
        """Digests of the small files that this object has put."""
        self._manifests: dict[int, bytes] = {}
        """Manifests of the complete checkpoints at the URL."""
        self._warned: set[str] = set()

    def check(self) -> None:
        """RefusedError unless the URL holds nothing, or an older state of the same run.

        Where it holds no run, a file is written and removed, so that a wrong URL is an error now, not hours
        later.
        """
        self._list()
        run = self._remote.read(layout.RUN) if layout.RUN in self._stored else None
        own = (self._directory / layout.RUN).read_bytes()
        if run is not None and _run_id(run) != _run_id(own):
            raise RefusedError(
                f"{self._remote.url} holds the run {_run_id(run)}, {self._directory} the run {_run_id(own)}",
                hint="give every run a URL of its own",
            )
        if run is None and layout.CONFIG in self._stored:
            raise RefusedError(
                f"{self._remote.url} holds a {layout.CONFIG}, but no run: perhaps it is a model's",
                hint="give the run a URL of its own",
            )
        steps = layout.complete_steps(self._stored)
        foreign = [step for step in steps if layout.checkpoint_folder(step) not in self._record]
        newest = max(layout.local_checkpoints(self._directory), default=0)
        if foreign and foreign[-1] > newest:
            raise RefusedError(
                f"{self._remote.url} holds step {foreign[-1]} of this run, which was continued elsewhere; "
                f"{self._directory} holds step {newest}",
                hint="move the directory away: it is then fetched from the URL, and continues from there",
            )
        if run is None:
            self._remote.put_bytes(b"", _TRIAL)
            self._remote.remove(_TRIAL)

    def copy(self) -> None:
        """One pass. After a YaokiError the next pass continues from what was done.

        Local files are read in the opposite order of writing: what a file refers to exists when it is read.
        """
        self._list()
        self._is_listed = False
        later = self._read(layout.LATER_FILES, layout.LATER_FOLDER)
        checkpoints = layout.local_checkpoints(self._directory)
        metrics = self._read([layout.METRICS], "").get(layout.METRICS, b"")
        segments = layout.local_segments(self._directory)
        self._record.add([*map(layout.checkpoint_folder, checkpoints), *map(layout.journal_folder, segments)])

        self._put_small(self._read(layout.BASE_FILES, layout.BASE_FOLDER))
        for of_step in segments.values():
            self._put_segments(of_step)
        self._put_small({layout.METRICS: metrics})
        for step, path in checkpoints.items():
            self._put_checkpoint(step, path, metrics)
        if not layout.complete_steps(self._stored):
            later.pop(layout.SAVED, None)
        self._put_small(later)
        self._remove_checkpoints(checkpoints)
        self._remove_segments(segments)
        self._is_listed = True

    def _list(self) -> None:
        if not self._is_listed:
            self._manifests.clear()
            self._stored = self._remote.list()
            self._is_listed = True

    def _read(self, files: Iterable[str], folder: str) -> dict[str, bytes]:
        found = {}
        for name, path in layout.local_small_files(self._directory, files, folder):
            with suppress(FileNotFoundError):
                found[name] = path.read_bytes()
        return found

    def _put_small(self, files: Mapping[str, bytes]) -> None:
        """Put the files that this object has not put with this content."""
        for name, data in files.items():
            digest = xxhash.xxh3_128_hexdigest(data)
            if self._small.get(name) != digest:
                self._small.pop(name, None)
                self._put_bytes(name, data)
                self._small[name] = digest

    def _put_segments(self, segments: Mapping[str, Path]) -> None:
        for name, path in segments.items():
            with suppress(FileNotFoundError):  # pruned or quarantined
                if name not in self._stored:
                    size_bytes = path.stat().st_size
                    self._remote.put(path, name)
                    self._stored[name] = size_bytes

    def _put_checkpoint(self, step: int, path: Path, metrics: bytes) -> None:
        try:
            manifest = (path / MANIFEST).read_bytes()
            stored = self._stored_manifest(step)
            if stored == manifest or (stored is not None and layout.complete_steps(self._stored) == [step]):
                return  # the only checkpoint there is not replaced by another one of its step
            self._put_files(step, path, metrics)
            if (path / MANIFEST).read_bytes() == manifest:  # otherwise the step was saved again meanwhile
                self._put_bytes(layout.manifest_name(step), manifest)
                self._manifests[step] = manifest
        except FileNotFoundError:
            return  # pruned meanwhile
        except CorruptCheckpointError as error:
            if path.is_dir() and error.message not in self._warned:
                self._warned.add(error.message)
                self._warn(f"not copied to {self._remote.url}: {error.message}")

    def _put_files(self, step: int, path: Path, metrics: bytes) -> None:
        """Put all files but the manifest; the manifest of an older checkpoint of this step is removed first.

        A second copy of the metrics belongs to the checkpoint, because the run's own are cut back when it
        resumes from an earlier checkpoint.
        """
        manifest, folder = check_sizes(path), layout.checkpoint_folder(step)
        if layout.manifest_name(step) in self._stored:
            self._remove(layout.manifest_name(step))
        for file in manifest.files:
            self._remote.put(path / file.name, f"{folder}/{file.name}")
            self._stored[f"{folder}/{file.name}"] = file.size_bytes
        self._put_bytes(f"{folder}/{layout.METRICS}", metrics)

    def _stored_manifest(self, step: int) -> bytes | None:
        """The manifest of this step at the URL; None without a valid one."""
        name = layout.manifest_name(step)
        if name in self._stored and step not in self._manifests:
            data = self._remote.read(name) or b""
            try:
                parse_manifest(data, name)
            except CorruptCheckpointError:
                self._stored.pop(name)
            else:
                self._manifests[step] = data
        return self._manifests.get(step)

    def _remove_checkpoints(self, here: Mapping[int, Path]) -> None:
        """Remove incomplete checkpoints, and those that this directory had and has no more.

        A complete one is removed only when one that is still here is complete there.
        """
        complete = layout.complete_steps(self._stored)
        is_safe = any(step in here for step in complete)
        for step, files in layout.checkpoint_files(self._stored).items():
            is_ours = layout.checkpoint_folder(step) in self._record
            if step in here or (step in complete and not (is_ours and is_safe)):
                continue
            manifest = layout.manifest_name(step)
            for name in sorted(files, key=lambda name: name != manifest):
                self._remove(name)
            self._record.remove(layout.checkpoint_folder(step))

    def _remove_segments(self, here: Mapping[int, Mapping[str, Path]]) -> None:
        """Remove quarantined segments, and pruned steps unless a checkpoint at the URL may need them."""
        oldest = min(layout.complete_steps(self._stored), default=0)
        for step, files in layout.segment_files(self._stored).items():
            is_pruned = step not in here and layout.journal_folder(step) in self._record and step <= oldest
            for name in files:
                if is_pruned or (step in here and name not in here[step]):
                    self._remove(name)
            if is_pruned:
                self._record.remove(layout.journal_folder(step))

    def _put_bytes(self, name: str, data: bytes) -> None:
        self._remote.put_bytes(data, name)
        self._stored[name] = len(data)

    def _remove(self, name: str) -> None:
        self._manifests = {s: data for s, data in self._manifests.items() if layout.manifest_name(s) != name}
        self._remote.remove(name)
        self._stored.pop(name, None)


def _run_id(run: bytes) -> str:
    try:
        return str(json.loads(run)["run_id"])
    except (ValueError, KeyError, TypeError):
        return "(unreadable)"
