"""Find the deltas below several folders, and look them up by task, strategy and version.

A store reads the headers once. A lookup touches no disk, so a requested name never becomes a path.
Files that are not sound deltas, and deltas of another backbone, are listed with a reason and never
served. `deltas.format` reads a single file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from deltas.delta import Delta
from deltas.errors import DeltaError, DeltaFormatError, DeltaNotFoundError
from deltas.format import SUFFIX, check_backbone, parse_delta, read_content, read_manifest
from deltas.manifest import BackboneRef, EntryInfo, Manifest

DEFAULT_STRATEGY = "bitfit"


def zoo_path() -> Path:
    """Return the folder of the deltas that are shipped with the project; read-only by rule."""
    return Path(str(files("deltas"))) / "zoo"


def delta_path(root: Path, backbone_id: str, task: str, strategy: str) -> Path:
    """Return <root>/<backbone>/<task>/<strategy>.safetensors, with names made safe."""
    return root / _file_name(backbone_id) / task / f"{_strategy_file(strategy)}{SUFFIX}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:100] or "unnamed"


def _strategy_file(strategy: str) -> str:
    """Turn `random:0.001` into `random-0.001`; a digest keeps unsafe names distinct."""
    if re.fullmatch(r"[A-Za-z0-9._+:]{1,100}", strategy):
        return _file_name(strategy)
    digest = hashlib.sha256(strategy.encode()).hexdigest()[:8]
    return f"{_file_name(strategy)}-{digest}"


@dataclass(frozen=True)
class Record:
    """One delta of the store, as its header describes it."""

    path: Path
    manifest: Manifest
    version: str
    num_bytes: int
    is_default: bool = True  # answers requests that name no version

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """Task, strategy and version; unique within a store."""
        return (*self.manifest.key, self.version)

    def load(self) -> Delta:
        """Read and check the whole file.

        Raises:
            DeltaFormatError: the file is damaged, or was replaced since the store was built.
        """
        return self.parse(read_content(self.path))

    def parse(self, content: bytes) -> Delta:
        """Check the delta like `load`, from the bytes of the file."""
        delta = parse_delta(self.path, content)
        if delta.version != self.version:
            reason = f"changed from version {self.version} to {delta.version}; restart"
            raise DeltaFormatError(self.path, reason)
        return delta


class Store:
    """The deltas below several roots, by task, strategy and version.

    A task and strategy may have several deltas, one for each version. The default version is one
    trained on real rows before one trained on the generated sample, then the one of the earlier
    root. Of files with the same version, only the first is served; the others are copies that
    replace it if it turns out to be damaged.

    Args:
        roots: folders to search, or files, the most important first.
        backbone: the backbone of the deltas to serve; None serves all.
    """

    def __init__(self, roots: Sequence[Path], *, backbone: BackboneRef | None = None) -> None:
        self.rejected: list[tuple[Path, str]] = []  # files that are not served, with the reason
        self._roots = tuple(roots)
        entries: dict[tuple[EntryInfo, ...], tuple[EntryInfo, ...]] = {}
        self._found: dict[tuple[str, str], list[Record]] = {}
        for path in find_delta_files(roots, self._reject_folder):
            try:
                manifest, version = read_manifest(path)
                if backbone is not None:
                    check_backbone(manifest, backbone)
                num_bytes = path.stat().st_size
            except OSError as error:  # it has gone since its header was read
                self.rejected.append((path, f"can't be read ({error.strerror})"))
                continue
            except DeltaError as error:
                reason = error.reason if isinstance(error, DeltaFormatError) else str(error)
                self.rejected.append((path, reason))
                continue
            # Thousands of deltas of one strategy have equal entries: keep one tuple for them all.
            shared = entries.setdefault(manifest.entries, manifest.entries)
            manifest = manifest.model_copy(update={"entries": shared})
            record = Record(path, manifest, version, num_bytes)
            self._found.setdefault(manifest.key, []).append(record)

    def _reject_folder(self, folder: Path, error: OSError) -> None:
        """Note a folder whose files are not known, unless there is none: a root may come later."""
        if not isinstance(error, FileNotFoundError):
            self.rejected.append((folder, f"the folder can't be read ({error.strerror})"))

    def reject(self, record: Record, reason: str, *, with_copies: bool = False) -> None:
        """Take a file out of service, for example because its tensors are damaged.

        A copy of the same version replaces it in `records`, unless `with_copies` rejects those too.
        """
        found = self._found[record.manifest.key]
        bad = [
            known
            for known in found
            if known.path == record.path or (with_copies and known.version == record.version)
        ]
        self.rejected += [(known.path, reason) for known in bad]
        found[:] = [known for known in found if known not in bad]
        self.__dict__.pop("records", None)
        self.__dict__.pop("_by_task", None)

    def shown_name(self, path: Path) -> str:
        """Return a file's path below its root, which reveals nothing about the machine."""
        above = (root for root in self._roots if root != path and path.is_relative_to(root))
        root = next(above, path.parent)
        return os.fsencode(path.relative_to(root)).decode(errors="replace")

    @cached_property
    def records(self) -> list[Record]:
        """All served deltas, sorted by task and strategy, defaults first."""
        return [record for key in sorted(self._found) for record in _ranked(self._found[key])]

    @cached_property
    def _by_task(self) -> dict[str, dict[str, list[Record]]]:
        tasks: dict[str, dict[str, list[Record]]] = {}
        for record in self.records:
            task, strategy = record.manifest.key
            tasks.setdefault(task, {}).setdefault(strategy, []).append(record)
        return tasks

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks, sorted."""
        return list(self._by_task)

    def strategies(self, task: str) -> list[str]:
        """Return the names of a task's strategies, sorted.

        Raises:
            DeltaNotFoundError: no such task.
        """
        if task not in self._by_task:
            raise DeltaNotFoundError("task", task, self._by_task)
        return list(self._by_task[task])

    def default_strategy(self, task: str) -> str:
        """Return the strategy of requests that name none: "bitfit", else the first by name.

        Strategies trained on the generated sample only count if there are no others.
        """
        strategies = self.strategies(task)
        by_strategy = self._by_task[task]
        real = [name for name in strategies if not _is_sample(by_strategy[name][0])]
        strategies = real or strategies
        return DEFAULT_STRATEGY if DEFAULT_STRATEGY in strategies else strategies[0]

    def resolve(self, task: str, strategy: str | None = None, version: str | None = None) -> Record:
        """Find the delta of a task, with the default strategy and version unless named.

        Raises:
            DeltaNotFoundError: no such task, strategy or version; carries near matches.
        """
        strategies = self.strategies(task)
        strategy = self.default_strategy(task) if strategy is None else strategy
        if strategy not in strategies:
            raise DeltaNotFoundError("strategy", strategy, strategies)
        records = self._by_task[task][strategy]
        if version is None:
            return records[0]
        for record in records:
            if record.version == version:
                return record
        raise DeltaNotFoundError("version", version, [record.version for record in records])


def find_delta_files(
    roots: Sequence[Path], on_error: Callable[[Path, OSError], None] | None = None
) -> Iterator[Path]:
    """Yield the delta files below folders, each once, without hidden ones, such as macOS leaves.

    A root that is a file is yielded itself. Links to folders are not followed, since they may be
    circular.

    Args:
        roots: folders or files.
        on_error: called with each folder that can't be read, and the error; None raises it.
    """
    seen: set[str] = set()
    for root in roots:
        is_file = os.path.isfile(root)  # noqa: PTH113 - Path.is_file raises where access is denied
        for path in [root] if is_file else sorted(_files_below(root, on_error)):
            real = os.path.realpath(path)  # Path.resolve raises on circular links
            if real not in seen:
                seen.add(real)
                yield path


def _files_below(root: Path, on_error: Callable[[Path, OSError], None] | None) -> Iterator[Path]:
    """Yield everything below a folder that is called like a delta; no depth is too deep."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
            waiting += [
                folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)
            ]
        except OSError as error:
            if on_error is None:
                raise
            on_error(folder, error)
            continue
        yield from (folder / entry.name for entry in found if entry.name.endswith(SUFFIX))


def _is_sample(record: Record) -> bool:
    return record.manifest.training.data == "sample"


def _ranked(records: list[Record]) -> list[Record]:
    """Sort records of real rows before those of the sample; the first is the default."""
    first_of_version: dict[str, Record] = {}
    for record in records:
        first_of_version.setdefault(record.version, record)
    ranked = sorted(first_of_version.values(), key=_is_sample)
    return [replace(record, is_default=record is ranked[0]) for record in ranked]
