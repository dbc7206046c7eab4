"""The store: which deltas there are, over several folders, and which of them answers to a name.

Built once from headers alone; looking up a name touches no disk, so no name can ever become a path.
Files that are no sound deltas, or deltas of another backbone, are listed with their reason and
never served.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
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
    """Folder of the deltas that are shipped with the project; read-only by rule."""
    return Path(str(files("deltas"))) / "zoo"


def delta_path(root: Path, backbone_id: str, task: str, strategy: str) -> Path:
    """A delta's place: <root>/<backbone>/<task>/<strategy>.safetensors, names made safe."""
    return root / _file_name(backbone_id) / task / f"{_strategy_file(strategy)}{SUFFIX}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:100] or "unnamed"


def _strategy_file(strategy: str) -> str:
    """`random:0.001` as `random-0.001`; a digest tells apart what would else share a name."""
    if re.fullmatch(r"[A-Za-z0-9._+:]{1,100}", strategy):
        return _file_name(strategy)
    digest = hashlib.sha256(strategy.encode()).hexdigest()[:8]
    return f"{_file_name(strategy)}-{digest}"


@dataclass(frozen=True)
class Record:
    """One delta of the store, known by its header.

    Attributes:
        path: the file.
        manifest: what it says about itself.
        version: digest of its content.
        num_bytes: size of the file.
        is_default: whether it answers when no version is named.
    """

    path: Path
    manifest: Manifest
    version: str
    num_bytes: int
    is_default: bool = True

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """(task, strategy, version): no two records of a store share it."""
        return (*self.manifest.key, self.version)

    def load(self) -> Delta:
        """Read and check the whole file.

        Raises:
            DeltaFormatError: it is damaged, or was replaced since the store was built.
        """
        return self.parse(read_content(self.path))

    def parse(self, content: bytes) -> Delta:
        """`load` for one who has read the file already."""
        delta = parse_delta(self.path, content)
        if delta.version != self.version:
            raise DeltaFormatError(
                self.path, f"changed from version {self.version} to {delta.version}; restart"
            )
        return delta


class Store:
    """Deltas below several roots.

    Several deltas of one task and strategy may be there; each answers to its version. Without a
    version the one trained on real rows wins over one trained on the generated sample, then the one
    of the earlier root. Of files with the same version only the first is served; the others are
    copies, which step in when it turns out to be damaged.

    Args:
        roots: folders to search, the most important first.
        backbone: only deltas of this backbone are served; None takes all.

    Attributes:
        rejected: (file, reason) of everything that isn't served for a reason.
    """

    def __init__(self, roots: Sequence[Path], *, backbone: BackboneRef | None = None) -> None:
        self.rejected: list[tuple[Path, str]] = []
        self._roots = tuple(roots)
        entries: dict[tuple[EntryInfo, ...], tuple[EntryInfo, ...]] = {}
        self._found: dict[tuple[str, str], list[Record]] = {}
        for path in _delta_files(roots):
            try:
                record = _read_record(path, backbone)
            except DeltaError as error:
                reason = error.reason if isinstance(error, DeltaFormatError) else str(error)
                self.rejected.append((path, reason))
                continue
            # Thousands of deltas of one strategy list the same entries: one list for all of them.
            shared = entries.setdefault(record.manifest.entries, record.manifest.entries)
            manifest = record.manifest.model_copy(update={"entries": shared})
            record = replace(record, manifest=manifest)
            self._found.setdefault(manifest.key, []).append(record)

    def reject(self, record: Record, reason: str, *, with_copies: bool = False) -> None:
        """Take a file out of service, for a reason found only when the whole of it was read.

        Without `with_copies`, `records` may have a new one afterwards: a copy of the same version
        that lay behind it.
        """
        same = self._found[record.manifest.key]
        out = [
            known
            for known in same
            if known.path == record.path or (with_copies and known.version == record.version)
        ]
        self.rejected += [(known.path, reason) for known in out]
        same[:] = [known for known in same if known not in out]
        self.__dict__.pop("records", None)
        self.__dict__.pop("_by_task", None)

    def shown_name(self, path: Path) -> str:
        """A file's name below its root: enough to know it, and nothing about the machine."""
        root = next((root for root in self._roots if path.is_relative_to(root)), path.parent)
        return os.fsencode(path.relative_to(root)).decode(errors="replace")

    @cached_property
    def records(self) -> list[Record]:
        """Everything that is served, by task, strategy, and defaults first."""
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
        """Names of all tasks, sorted."""
        return list(self._by_task)

    def strategies(self, task: str) -> list[str]:
        """Names of a task's strategies, sorted.

        Raises:
            DeltaNotFoundError: no such task.
        """
        if task not in self._by_task:
            raise DeltaNotFoundError("task", task, self._by_task)
        return list(self._by_task[task])

    def default_strategy(self, task: str) -> str:
        """The strategy that answers when a request names none: "bitfit", else the first by name.

        Those trained on the generated sample only if there are no others.
        """
        strategies = self.strategies(task)
        by_strategy = self._by_task[task]
        real = [name for name in strategies if not _is_sample(by_strategy[name][0])]
        strategies = real or strategies
        return DEFAULT_STRATEGY if DEFAULT_STRATEGY in strategies else strategies[0]

    def resolve(self, task: str, strategy: str | None = None, version: str | None = None) -> Record:
        """Find the delta that answers.

        Raises:
            DeltaNotFoundError: no such task, strategy or version; with near matches, never
                something else.
        """
        strategies = self.strategies(task)
        wanted = self.default_strategy(task) if strategy is None else strategy
        if wanted not in strategies:
            raise DeltaNotFoundError("strategy", wanted, strategies)
        records = self._by_task[task][wanted]
        if version is None:
            return records[0]
        for record in records:
            if record.version == version:
                return record
        raise DeltaNotFoundError("version", version, [record.version for record in records])


def _delta_files(roots: Sequence[Path]) -> Iterable[Path]:
    seen: set[str] = set()
    for root in roots:
        for path in sorted(root.rglob(f"*{SUFFIX}")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            real = os.path.realpath(path)  # Path.resolve raises on links in circles
            if not hidden and real not in seen:
                seen.add(real)
                yield path


def _read_record(path: Path, backbone: BackboneRef | None) -> Record:
    manifest, version = read_manifest(path)
    if backbone is not None:
        check_backbone(manifest, backbone)
    return Record(path, manifest, version, path.stat().st_size)


def _is_sample(record: Record) -> bool:
    return record.manifest.training.data == "sample"


def _ranked(records: list[Record]) -> list[Record]:
    """Real rows before the sample, else in the order found; only the first is the default."""
    first_of_version = {record.version: record for record in reversed(records)}
    ordered = sorted(
        (record for record in records if first_of_version[record.version] is record),
        key=_is_sample,
    )
    return [
        Record(
            record.path, record.manifest, record.version, record.num_bytes, is_default=position == 0
        )
        for position, record in enumerate(ordered)
    ]
