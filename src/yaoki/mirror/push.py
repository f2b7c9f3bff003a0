"""One pass of bringing the copy at a URL up to date with a run's directory.

At every instant what lies at the URL is a run that can be gone on with: what is referred to comes first, what
refers to it after, and a checkpoint's manifest last of its files; removal goes the other way round. The
directory may change during the pass: what vanishes is left out, what comes is left for the next one.
Knows nothing of threads, nor when a pass is due.
"""

import json
from collections.abc import Callable, Iterable, Mapping
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
"""A file that is there for an instant."""


class Copier:
    """Copies one directory to one URL. Nobody else may write to either the URL or its run meanwhile."""

    def __init__(self, directory: Path, remote: Remote, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._remote = remote
        self._warn = warn
        self._record = Record(directory, remote.url)
        self._there: dict[str, int] | None = None
        """What lies at the URL; None if that is not known, as after an error."""
        self._small: dict[str, str] = {}
        """Digests of the small files that this object has put there."""
        self._manifests: dict[int, bytes] = {}
        """Of the checkpoints that are whole there."""
        self._warned: set[str] = set()

    def check(self) -> None:
        """RefusedError unless the URL holds nothing, or an older state of the same run.

        Where it holds none, a file is written and removed: a wrong URL is found out now, not in some hours.
        """
        there = self._list()
        stored = self._remote.read(layout.RUN) if layout.RUN in there else None
        here = (self._directory / layout.RUN).read_bytes()
        if stored is not None and _run_id(stored) != _run_id(here):
            raise RefusedError(
                f"{self._remote.url} holds the run {_run_id(stored)}, "
                f"{self._directory} the run {_run_id(here)}",
                hint="give every run a URL of its own",
            )
        if stored is None and layout.CONFIG in there:
            raise RefusedError(
                f"{self._remote.url} holds a {layout.CONFIG}, but no run: perhaps it is a model's",
                hint="give the run a URL of its own",
            )
        strange = [s for s in layout.complete_steps(there) if layout.checkpoint_folder(s) not in self._record]
        newest = max(layout.local_checkpoints(self._directory), default=0)
        if strange and strange[-1] > newest:
            raise RefusedError(
                f"{self._remote.url} holds step {strange[-1]} of this run, which has gone on elsewhere; "
                f"{self._directory} holds step {newest}",
                hint="move the directory away: the run is then fetched from the URL, and goes on from there",
            )
        if stored is None:
            self._remote.put_bytes(b"", _TRIAL)
            self._remote.remove(_TRIAL)

    def copy(self) -> None:
        """One pass. Raises YaokiError; what was done up to then counts, and the next pass goes on.

        The reading goes against the order of writing: whatever a file refers to is there when that is read.
        """
        there = self._list()
        self._there = None
        later = self._read(layout.LATER_FILES, layout.LATER_FOLDER)
        checkpoints = layout.local_checkpoints(self._directory)
        metrics = self._read([layout.METRICS], "").get(layout.METRICS, b"")
        parts = layout.local_parts(self._directory)
        self._record.add([*map(layout.checkpoint_folder, checkpoints), *map(layout.journal_folder, parts)])

        self._put_small(there, self._read(layout.BASE_FILES, layout.BASE_FOLDER))
        for step_parts in parts.values():
            self._put_parts(there, step_parts)
        self._put_small(there, {layout.METRICS: metrics})
        for step, path in checkpoints.items():
            self._put_checkpoint(there, step, path, metrics)
        if not layout.complete_steps(there):
            later.pop(layout.SAVED, None)
        self._put_small(there, later)
        self._remove_checkpoints(there, checkpoints)
        self._remove_parts(there, parts)
        self._there = there

    def _list(self) -> dict[str, int]:
        if self._there is None:
            self._manifests.clear()
            self._there = self._remote.list()
        return self._there

    def _read(self, files: Iterable[str], folder: str) -> dict[str, bytes]:
        found = {}
        for name, path in layout.local_small_files(self._directory, files, folder):
            try:
                found[name] = path.read_bytes()
            except FileNotFoundError:
                continue
        return found

    def _put_small(self, there: dict[str, int], files: Mapping[str, bytes]) -> None:
        """Those that are not there as they are here."""
        for name, data in files.items():
            digest = xxhash.xxh3_128_hexdigest(data)
            if self._small.get(name) != digest:
                self._small.pop(name, None)
                self._remote.put_bytes(data, name)
                there[name] = len(data)
                self._small[name] = digest

    def _put_parts(self, there: dict[str, int], parts: Mapping[str, Path]) -> None:
        for name, path in parts.items():
            try:
                if name not in there:
                    size_bytes = path.stat().st_size
                    self._remote.put(path, name)
                    there[name] = size_bytes
            except FileNotFoundError:
                continue  # pruned, or set aside

    def _put_checkpoint(self, there: dict[str, int], step: int, path: Path, metrics: bytes) -> None:
        try:
            manifest = (path / MANIFEST).read_bytes()
            stored = self._manifest_there(there, step)
            if stored == manifest or (stored is not None and layout.complete_steps(there) == [step]):
                return  # the only one is not given up for another of its step
            self._put_files(there, step, path, metrics)
            if (path / MANIFEST).read_bytes() == manifest:  # else the step was saved again meanwhile
                self._put_manifest(there, step, manifest)
        except FileNotFoundError:
            return  # pruned meanwhile
        except CorruptCheckpointError as error:
            if path.is_dir() and error.message not in self._warned:
                self._warned.add(error.message)
                self._warn(f"not copied to {self._remote.url}: {error.message}")

    def _put_files(self, there: dict[str, int], step: int, path: Path, metrics: bytes) -> None:
        """All but the manifest; a checkpoint of the same step that is there ceases to be one first.

        The metrics are there a second time because the run's own may be cut back later, should it go on
        from an earlier checkpoint.
        """
        manifest, folder = check_sizes(path), layout.checkpoint_folder(step)
        if layout.manifest_name(step) in there:
            self._remove(there, layout.manifest_name(step))
        for file in manifest.files:
            self._remote.put(path / file.name, f"{folder}/{file.name}")
            there[f"{folder}/{file.name}"] = file.size_bytes
        self._remote.put_bytes(metrics, f"{folder}/{layout.METRICS}")
        there[f"{folder}/{layout.METRICS}"] = len(metrics)

    def _put_manifest(self, there: dict[str, int], step: int, manifest: bytes) -> None:
        self._remote.put_bytes(manifest, layout.manifest_name(step))
        there[layout.manifest_name(step)] = len(manifest)
        self._manifests[step] = manifest

    def _manifest_there(self, there: dict[str, int], step: int) -> bytes | None:
        """What makes the step a checkpoint there; None where a torn or missing one does not."""
        name = layout.manifest_name(step)
        if name in there and step not in self._manifests:
            data = self._remote.read(name) or b""
            try:
                parse_manifest(data, name)
            except CorruptCheckpointError:
                there.pop(name)
            else:
                self._manifests[step] = data
        return self._manifests.get(step)

    def _remove_checkpoints(self, there: dict[str, int], here: Mapping[int, Path]) -> None:
        """Those that this directory had, and beginnings of others; none before one that is here is there."""
        complete = layout.complete_steps(there)
        is_safe = any(step in here for step in complete)
        for step, files in layout.checkpoint_files(there).items():
            is_ours = layout.checkpoint_folder(step) in self._record
            if step in here or (step in complete and not (is_ours and is_safe)):
                continue
            manifest = layout.manifest_name(step)
            for name in sorted(files, key=lambda name: name != manifest):
                self._remove(there, name)
            self._record.forget([layout.checkpoint_folder(step)])

    def _remove_parts(self, there: dict[str, int], here: Mapping[int, Mapping[str, Path]]) -> None:
        """Parts that were set aside, and steps that were pruned, unless a checkpoint there may need them."""
        oldest = min(layout.complete_steps(there), default=0)
        for step, files in layout.part_files(there).items():
            is_pruned = step not in here and layout.journal_folder(step) in self._record and step <= oldest
            for name in files:
                if is_pruned or (step in here and name not in here[step]):
                    self._remove(there, name)
            if is_pruned:
                self._record.forget([layout.journal_folder(step)])

    def _remove(self, there: dict[str, int], name: str) -> None:
        self._manifests = {s: data for s, data in self._manifests.items() if layout.manifest_name(s) != name}
        self._remote.remove(name)
        there.pop(name, None)


def _run_id(run: bytes) -> str:
    try:
        return str(json.loads(run)["run_id"])
    except (ValueError, KeyError, TypeError):
        return "(unreadable)"
