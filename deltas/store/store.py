"""Look deltas up by task, strategy and version; the headers below several folders are read once.

A lookup touches no disk, so a requested name never becomes a path. Files that are not sound deltas,
and deltas of another backbone, are listed with a reason and never served. A store that serves never
changes: `Store.reread` returns another one, which shares all records whose files are the same.
`deltas.store.files` says which files there are; `deltas.format` reads a single one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from deltas.delta import Delta
from deltas.errors import DeltaError, DeltaFormatError, DeltaNotFoundError
from deltas.format import check_backbone, parse_delta, read_content, read_manifest
from deltas.manifest import BackboneRef, EntryInfo, Manifest
from deltas.store.files import default_of, is_version, kept_files, kept_path
from deltas.store.files import delta_path as delta_path
from deltas.store.files import find_delta_files as find_delta_files
from deltas.store.files import zoo_path as zoo_path

DEFAULT_STRATEGY = "bitfit"

_Name = tuple[str, str]  # task and strategy
NotCopied = dict[Path, tuple[tuple[Path, str], ...]]  # refused files, with the reason, by root


@dataclass(frozen=True)
class _State:
    """The facts by which a file differs from an earlier one at the same path."""

    num_bytes: int
    changed_ns: int
    inode: int
    is_alone: bool  # a kept file without its default file


_UNREAD = _State(-1, 0, 0, is_alone=False)  # differs from every file


@dataclass(frozen=True)
class _File:
    """A file of the store, and the delta that it holds; None if the file is refused."""

    state: _State
    name: _Name | None = None


@dataclass(frozen=True)
class Record:
    """One delta of the store, as its header describes it."""

    path: Path
    manifest: Manifest
    version: str
    num_bytes: int
    is_default: bool = True  # answers requests that name no version
    is_published: bool = False  # its default file has a kept one of the same version beside it

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """Task, strategy and version; unique within a store."""
        return (*self.manifest.key, self.version)

    @property
    def is_kept(self) -> bool:
        """True if the delta answers only requests that name its version, from a file kept for it.

        Such deltas are loaded when they are asked for.
        """
        return not self.is_published and default_of(self.path) is not None and not self.is_default

    @property
    def kept_file(self) -> Path | None:
        """The file that keeps this version beside a default file, if there should be one."""
        if default_of(self.path) is not None or not is_version(self.version):
            return None
        return kept_path(self.path, self.version)

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
            reason = f"changed from version {self.version} to {delta.version} since it was found"
            raise DeltaFormatError(self.path, reason)
        return delta


class Store:
    """The deltas below several roots, by task, strategy and version.

    A task and strategy may have several deltas, one for each version. The default version is a
    published one, then one trained on real rows before one trained on the generated sample, then
    the one of the earlier root. Versions that are kept beside a default file come last, and lead
    only if that file is damaged. Of files with the same version, only the first is served; the
    others are copies that replace it if it turns out to be damaged.

    Args:
        roots: folders to search, or files, the most important first.
        backbone: the backbone of the deltas to serve; None serves all.

    Attributes:
        rejected: files below the roots that are not served, with the reason.
        not_copied: by root that is a copy, the files that were refused before they came there.
    """

    def __init__(self, roots: Sequence[Path], *, backbone: BackboneRef | None = None) -> None:
        self.rejected: list[tuple[Path, str]] = []
        self.not_copied: NotCopied = {}
        self._roots = tuple(roots)
        self._backbone = backbone
        # Two stores may share the values of these dictionaries, so they are replaced, not changed.
        self._files: dict[Path, _File] = {}
        self._found: dict[_Name, dict[Path, Record]] = {}
        self._by_task: dict[str, dict[str, tuple[Record, ...]]] = {}
        # Thousands of deltas of one strategy have equal entries: keep one tuple for them all.
        self._entries: dict[tuple[EntryInfo, ...], tuple[EntryInfo, ...]] = {}
        for path in find_delta_files(roots, self._reject_folder):
            self._read(path)
        self._rank(set(self._found))

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders, or files, in which deltas are looked for, the most important first."""
        return self._roots

    @property
    def all_rejected(self) -> list[tuple[Path, str]]:
        """All files that are not served, those that were not copied too."""
        return [*self.rejected, *chain.from_iterable(self.not_copied.values())]

    def _reject_folder(self, folder: Path, error: OSError) -> None:
        """Note a folder whose files are not known, unless there is none: a root may come later."""
        if not isinstance(error, FileNotFoundError):
            self.rejected.append((folder, f"the folder can't be read ({error.strerror})"))

    def _read(self, path: Path) -> None:
        """Read the header of a file; the record is unranked until `_rank`."""
        try:
            state = _state_of(path)
            self._files[path] = _File(state)
            manifest, version = read_manifest(path)
            if self._backbone is not None:
                check_backbone(manifest, self._backbone)
            _check_kept(path, version, state)
            num_bytes = path.stat().st_size
        except OSError as error:  # it has gone since it was found
            self.rejected.append((path, f"can't be read ({error.strerror})"))
        except DeltaError as error:
            reason = error.reason if isinstance(error, DeltaFormatError) else str(error)
            self.rejected.append((path, reason))
        else:
            shared = self._entries.setdefault(manifest.entries, manifest.entries)
            manifest = manifest.model_copy(update={"entries": shared})
            self._put(Record(path, manifest, version, num_bytes))

    def _put(self, record: Record) -> None:
        path, name = record.path, record.manifest.key
        self._files[path] = replace(self._files[path], name=name)
        self._found[name] = {**self._found.get(name, {}), path: record}

    def _take(self, path: Path) -> _Name | None:
        """Forget the record of a file, but not the file; returns the name of the delta."""
        file = self._files.get(path)
        if file is None or file.name is None:
            return None
        self._files[path] = replace(file, name=None)
        left = {p: record for p, record in self._found.pop(file.name).items() if p != path}
        if left:
            self._found[file.name] = left
        return file.name

    def reread(
        self, paths: Iterable[Path] | None = None, *, keep_missing: bool = False
    ) -> tuple[Store, set[_Name]]:
        """Return a store that knows files as they are now, and the deltas that may differ.

        This store stays as it is. Files that have not changed are not read again.

        Args:
            paths: delta files below the roots, there or not; None takes all files below the roots.
            keep_missing: whether the deltas of files that have gone stay.
        """
        new = object.__new__(Store)
        new.__dict__ |= self.__dict__
        new.__dict__.pop("records", None)
        new._files, new._found = dict(self._files), dict(self._found)
        if paths is None:
            new.rejected = [item for item in self.rejected if item[0] in self._files]
            unknown: list[Path] = []  # folders that can't be read now

            def note(folder: Path, error: OSError) -> None:
                if not isinstance(error, FileNotFoundError):
                    unknown.append(folder)
                new._reject_folder(folder, error)

            wanted = dict.fromkeys(find_delta_files(self._roots, note))
            lost = {path for path in self._files if any(map(path.is_relative_to, unknown))}
            wanted |= dict.fromkeys(self._files.keys() - lost)
        else:
            new.rejected = list(self.rejected)
            wanted = dict.fromkeys(file for path in paths for file in (path, *kept_files(path)))
        return new, new._read_changed(wanted, keep_missing=keep_missing)

    def _read_changed(self, paths: Iterable[Path], *, keep_missing: bool) -> set[_Name]:
        states = {path: _state_or_none(path) for path in paths}
        if keep_missing:
            states = {path: state for path, state in states.items() if state is not None}
        changed = {path for path, state in states.items() if state != self._known_state(path)}
        self.rejected = [item for item in self.rejected if item[0] not in changed]
        names = {self._take(path) for path in changed}
        for path in sorted(changed):
            self._files.pop(path, None)
            if states[path] is not None:
                self._read(path)
                if path in self._files:
                    names.add(self._files[path].name)
        known_names = {name for name in names if name is not None}
        self._rank(known_names)
        return known_names

    def _known_state(self, path: Path) -> _State | None:
        file = self._files.get(path)
        return file.state if file else None

    def keep(self, record: Record) -> None:
        """Go on serving the record of a file whose new content is refused.

        The file is read again when it changes again.
        """
        path, version = record.path, record.version
        if self._files.setdefault(path, _File(_UNREAD)).name is None:
            self._put(record)
            self._rank({record.manifest.key})
            self.rejected = [
                (other, f"{why}; version {version} goes on" if other == path else why)
                for other, why in self.rejected
            ]

    def reject(self, record: Record, reason: str, *, with_copies: bool = False) -> None:
        """Take a file out of service, for example because its tensors are damaged.

        A copy of the same version replaces it in `records`, unless `with_copies` rejects those too.
        """
        found = self._found[record.manifest.key]
        bad = [
            path
            for path, known in found.items()
            if path == record.path or (with_copies and known.version == record.version)
        ]
        for path in bad:
            self._take(path)
        self.rejected += [(path, reason) for path in bad]
        self._rank({record.manifest.key})

    def files_of(self, task: str, strategy: str) -> Mapping[Path, Record]:
        """Return the sound files of a delta, copies included, each with its unranked record."""
        return self._found.get((task, strategy), {})

    def shown_name(self, path: Path) -> str:
        """Return a file's path below its root, which reveals nothing about the machine."""
        above = (root for root in self._roots if root != path and path.is_relative_to(root))
        root = next(above, path.parent)
        return os.fsencode(path.relative_to(root)).decode(errors="replace")

    def _rank(self, names: set[_Name]) -> None:
        """Rank the records of some deltas anew; all others keep the objects that they have."""
        by_task = dict(self._by_task)
        for task, strategy in sorted(names):
            found = self._found.get((task, strategy), {})
            strategies = {k: v for k, v in by_task.pop(task, {}).items() if k != strategy}
            if found:
                several = len(found) > 1  # the order of one takes time, if there are many roots
                records = (
                    sorted(found.values(), key=self._scan_order) if several else found.values()
                )
                strategies[strategy] = _ranked(list(records))
            if strategies:
                by_task[task] = dict(sorted(strategies.items()))
        self._by_task = dict(sorted(by_task.items()))
        self.__dict__.pop("records", None)

    def _scan_order(self, record: Record) -> tuple[int, int, Path]:
        """Order files by root and name; of kept files, the one that was published last is first."""
        path = record.path
        roots = (n for n, root in enumerate(self._roots) if path.is_relative_to(root))
        is_kept = default_of(path) is not None
        return next(roots), -self._files[path].state.changed_ns if is_kept else 0, path

    @cached_property
    def records(self) -> list[Record]:
        """All served deltas, sorted by task and strategy, defaults first."""
        return [
            record
            for strategies in self._by_task.values()
            for ranked in strategies.values()
            for record in ranked
        ]

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

    def versions(self, task: str, strategy: str) -> tuple[Record, ...]:
        """Return the deltas of a task and strategy, the default first; none if it is unknown."""
        return self._by_task.get(task, {}).get(strategy, ())

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


def _state_of(path: Path) -> _State:
    """Look at a file, whose header need not be read again while this stays the same."""
    found = path.stat()
    kept = default_of(path)
    is_alone = kept is not None and not os.path.lexists(kept[0])
    return _State(found.st_size, found.st_mtime_ns, found.st_ino, is_alone)


def _state_or_none(path: Path) -> _State | None:
    try:
        return _state_of(path)
    except OSError:
        return None


def _check_kept(path: Path, version: str, state: _State) -> None:
    """Refuse a kept file that was renamed, or whose default file has gone."""
    kept = default_of(path)
    if kept and kept[1] != version:
        raise DeltaFormatError(path, f"its name says version {kept[1]}, but it has {version}")
    if kept and state.is_alone:
        reason = f"kept beside {kept[0].name}, which is gone; remove this file or publish again"
        raise DeltaFormatError(path, reason)


def _is_sample(record: Record) -> bool:
    return record.manifest.training.data == "sample" and not record.is_published


def _rank_of(record: Record) -> int:
    if record.is_published:
        return 0
    if default_of(record.path) is not None:
        return 3
    return 2 if _is_sample(record) else 1


def _ranked(records: Sequence[Record]) -> tuple[Record, ...]:
    """Rank the records of a delta, one for each version; the first is the default."""
    kept = {default_of(record.path): record for record in records}
    candidates = []
    for record in records:
        own = kept.get((record.path, record.version))
        candidates.append(replace(own, is_published=True) if own else record)
    first_of_version: dict[str, Record] = {}
    for record in sorted(candidates, key=_rank_of):
        first_of_version.setdefault(record.version, record)
    ranked = first_of_version.values()
    return tuple(replace(record, is_default=n == 0) for n, record in enumerate(ranked))
