"""Changes the deltas of an engine while it answers: publish, roll back, withdraw, read again.

All changes take turns. Each prepares another store in a thread and puts it in place of the engine's
in one step of the event loop, so a request finds either the old deltas or the new ones. A new file
is checked and tried on a row first; if it is bad, the last good version goes on. Requests that run
keep the version that they found: it stays in the bank until no request holds its record.
`deltas.store.versions` changes the files, in the thread of `app.engine.changes.disk` and while no
other server changes the same folder. Tested by tests/unit/app/engine/changes/test_changes.py and
tests/http/test_changes.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.engine.cache import Key
from app.engine.changes.disk import (
    LIMIT_OF_ALL_S,
    LIMIT_S,
    FileThread,
    Name,
    append,
    name_at,
    read_upload,
    reason_of,
    version_before,
)
from app.engine.engine import Engine
from app.engine.retired import RetiredVersions
from app.errors import ConflictError, DeltaUnavailableError, InvalidDeltaError
from deltas import DeltaError, Record, Store
from deltas.store import versions
from deltas.store.files import checked_path, default_of, kept_files
from deltas.store.store import NotCopied

logger = logging.getLogger(__name__)

T = TypeVar("T")
TryOut = Callable[[Record], Awaitable[None]]
_Block = AbstractAsyncContextManager[None]

_WRITTEN_TOGETHER = 2**20  # bytes
_MAX_LOGGED = 100  # lines about refused files of one change
_CHECKED_TOGETHER = 32  # new files whose trial rows share batches


@dataclass(frozen=True)
class Change:
    """The versions of a delta after a change.

    Attributes:
        previous: the version that was the default before; None if there was none.
        versions: all versions that are served now, the default first.
    """

    previous: str | None
    versions: tuple[str, ...]


class DeltaChanges:
    """Changes the deltas of an engine and their files.

    Args:
        engine: engine whose store is replaced.
        root: folder that takes published deltas; None takes none.
        try_out: function that answers a row by a delta, and raises if it can't.
        keep_versions: versions of a delta to keep, the default one included.

    Attributes:
        listeners: functions that are called after each change, in the event loop.
        needed: functions from a delta's name to the versions that must stay; called in the thread
            of changes.
        turn: function that makes the block of a change of a delta, or of all (None), in a cluster.
    """

    def __init__(
        self, engine: Engine, root: Path | None, try_out: TryOut, *, keep_versions: int = 5
    ) -> None:
        self.listeners: list[Callable[[], None]] = []
        self.needed: list[Callable[[Name], Collection[str]]] = []
        self.turn: Callable[[Name | None], _Block] = lambda name: nullcontext()
        self._engine = engine
        self._root = root
        self._try_out = try_out
        self._keep_versions = keep_versions
        self._lock = asyncio.Lock()
        self._disk = FileThread(root)
        self._on_disk = self._disk.call
        self._retired = RetiredVersions(engine.cache)
        self._bad: dict[Path, Key] = {}  # files with bad content, and the version served instead

    async def publish(self, task: str, strategy: str, content: AsyncIterator[bytes]) -> Change:
        """Serve an uploaded file as the default of its task and strategy, and keep it.

        Raises:
            ConflictError: there is no folder for it, or another delta has its file's name.
            DeltaNotFoundError: no delta can have this name.
            InvalidDeltaError: the content is no delta of this name, or it can't answer.
            StorageError: the files can't be written.
        """
        name = task, strategy
        root, target = self._root_and_path(name)
        upload = await self._on_disk(versions.new_upload, root)
        record = None
        try:
            await self._receive(content, upload)
            async with self._alone(name):
                await self._refresh(name, target)
                record = await self._on_disk(read_upload, upload, target, name)
                await self._check(record)
                before = self._engine.store.versions(*name)
                files = [target, *await self._on_disk(kept_files, target)]
                publish = partial(versions.publish, keep=_leads(target, before))
                try:
                    await self._on_disk(publish, upload, target, record.version)
                finally:
                    await self._adopt(files, checked=True)
                await self._prune(name, target)
                return self._change(name, before)
        finally:
            await self._on_disk(partial(upload.unlink, missing_ok=True))
            self._engine.forget(upload)
            served = self._engine.store.versions(*name)
            if record is not None and record.version not in {each.version for each in served}:
                self._engine.cache.retire([record.key])  # it was tried, and is of no use

    async def roll_back(self, task: str, strategy: str, version: str | None = None) -> Change:
        """Make a kept version the default again: the named one, or the last one before it.

        Raises:
            ConflictError: no version is kept that was published before the default one.
            DeltaNotFoundError: no such delta or version.
            InvalidDeltaError: the kept file is damaged.
            StorageError: the files can't be written.
        """
        name = task, strategy
        _, target = self._root_and_path(name)
        async with self._alone(name):
            await self._refresh(name, target)
            default = self._engine.store.resolve(task, strategy)
            before = self._engine.store.versions(*name)
            if version is None:
                version = await self._on_disk(version_before, target, default)
            record = self._engine.store.resolve(task, strategy, version)
            if default_of(record.path) != (target, version):
                raise ConflictError(
                    f"version {version} of {task}/{strategy} is not kept in the folder that takes "
                    "deltas; publish its file again"
                )
            await self._check(record)
            await self._try_out(record)
            switch = partial(versions.switch, keep=_leads(target, before))
            await self._on_disk(switch, record.path, target)
            await self._adopt([target], checked=True)
            return self._change(name, before)

    async def withdraw(self, task: str, strategy: str, version: str | None = None) -> Change:
        """Stop serving a delta, or one of its kept versions, and remove its files.

        Raises:
            ConflictError: the files lie in a folder that is only read, or a version is needed.
            DeltaNotFoundError: no such delta or version.
            StorageError: the files can't be removed.
        """
        name = task, strategy
        _, target = self._root_and_path(name)
        async with self._alone(name):
            await self._refresh(name, target)
            before = self._engine.store.versions(*name)
            is_ours = await self._on_disk(name_at, target) in (None, name)
            files = [target, *await self._on_disk(kept_files, target)] if is_ours else []
            if version is not None:
                files = [path for path in files if default_of(path) == (target, version)]
            present = [path for path in files if await self._on_disk(os.path.lexists, path)]
            if not present:
                self._engine.store.resolve(task, strategy, version)  # raises if it is unknown
                raise ConflictError(
                    f"{task}/{strategy} lies in a folder that the server only reads. Publish a "
                    "version over it, or remove its file there and reload"
                )
            gone = [record for record in before if record.path in present]
            if version is not None and gone and gone[0].is_default:
                raise ConflictError(
                    f"version {version} is the default of {task}/{strategy}; roll back to another "
                    "version first, or delete all versions"
                )
            await self._refuse_needed(name, gone)
            try:
                await self._remove(gone, present)
            finally:
                await self._adopt([target, *present], checked=True)
            return self._change(name, before)

    async def reload(
        self, paths: Iterable[Path] | None = None, *, not_copied: NotCopied | None = None
    ) -> set[Name]:
        """Read changed files again, and serve those that are sound; returns the changed deltas.

        Args:
            paths: files below the roots; None takes all files below the roots.
            not_copied: new entries of the store's `not_copied`.
        """
        async with self._lock:
            return await self._adopt(paths, not_copied=not_copied)

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that only reads, in the thread of changes, while none is under way."""
        async with self._lock:
            return await self._on_disk(function, *arguments)

    async def write(self, name: Name, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that changes what belongs to a delta, in the thread of changes.

        No other server changes the folder meanwhile, and the files of the delta are known as they
        are now.

        Raises:
            ConflictError: there is no folder for it.
            DeltaNotFoundError: no delta can have this name.
            StorageError: files can't be read or written.
        """
        _, target = self._root_and_path(name)
        async with self._alone(name):
            await self._refresh(name, target)
            return await self._on_disk(function, *arguments)

    async def is_outdated(self, records: Sequence[Record], deadline: float) -> bool:
        """Look again at the files of deltas that could not be loaded; tells if others answer now.

        A file that has gone may come back, so its delta stays. At the deadline, on the monotonic
        clock, the answer is that of the files known then: files may hang.
        """
        files = {_default_path(record) for record in records}
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()), self._lock:
                await self._adopt(files, keep_missing=True)
        current = self._engine.store
        return any(record not in current.versions(*record.manifest.key) for record in records)

    def close(self) -> None:
        """End the background work."""
        self._retired.close()
        self._disk.close()

    @asynccontextmanager
    async def _alone(self, name: Name) -> AsyncIterator[None]:
        """Wait until no other change is under way, here or by another server."""
        async with self.turn(name), self._lock, self._disk.alone():
            yield

    def _root_and_path(self, name: Name) -> tuple[Path, Path]:
        """Return the folder that takes deltas, and the default file of a delta in it."""
        if self._root is None:
            raise ConflictError(
                "no folder takes deltas; set DELTABERT_DELTAS to a folder, and restart"
            )
        return self._root, checked_path(self._root, self._engine.backbone.ref.id, *name)

    async def _receive(self, content: AsyncIterator[bytes], upload: Path) -> None:
        """Write a body to a file, a megabyte at a time, since writing blocks."""
        part = bytearray()
        async for chunk in content:
            part += chunk
            if len(part) >= _WRITTEN_TOGETHER:
                await self._on_disk(append, upload, bytes(part))
                part.clear()
        await self._on_disk(append, upload, bytes(part))

    async def _check(self, record: Record) -> None:
        """Check a whole file, and answer a row by it.

        A version that answers only if it is named is not loaded before.

        Raises:
            InvalidDeltaError: it is no sound delta of this backbone, or its answers are NaN.
        """
        try:
            await self._on_disk(self._engine.check, record)
        except DeltaError as error:
            raise InvalidDeltaError(reason_of(error)) from None
        if not record.is_kept:
            await self._try_out(record)

    async def _refuse_bad(self, store: Store, records: Sequence[Record]) -> None:
        """Check records of a store that is not served yet; many at a time share batches."""
        for start in range(0, len(records), _CHECKED_TOGETHER):
            part = records[start : start + _CHECKED_TOGETHER]
            outcomes = await asyncio.gather(*map(self._check, part), return_exceptions=True)
            for record, error in zip(part, outcomes, strict=True):
                if isinstance(error, InvalidDeltaError | DeltaUnavailableError):
                    store.reject(record, str(error))
                    self._engine.cache.retire([record.key])
                elif error is not None:
                    raise error

    async def _adopt(
        self,
        paths: Iterable[Path] | None = None,
        *,
        checked: bool = False,
        keep_missing: bool = False,
        not_copied: NotCopied | None = None,
    ) -> set[Name]:
        """Serve files as they are now, except for bad ones; the caller has the lock.

        Args:
            paths: files below the roots; None takes all.
            checked: whether the caller has checked the files.
            keep_missing: whether the deltas of files that have gone stay.
            not_copied: new entries of the store's `not_copied`.
        """
        old = self._engine.store
        reread = partial(old.reread, keep_missing=keep_missing)
        limit_s = LIMIT_S if paths is not None else LIMIT_OF_ALL_S
        new, names = await self._disk.call(reread, paths, limit_s=limit_s)
        new.not_copied = new.not_copied | (not_copied or {})
        if not names and new.all_rejected == old.all_rejected:
            return names
        if not checked:
            await self._refuse_bad(new, _fresh(old, new, names))
        bad = await self._on_disk(_keep_last_good, old, new, names)
        await self._on_disk(lambda: new.records)  # built here, not by the first request
        _log_refused(old, new)
        self._engine.serve(new)
        before = [record for name in names for record in old.versions(*name)]
        after = [record for name in names for record in new.versions(*name)]
        refused = {path for path, _ in new.rejected}
        self._bad = {path: key for path, key in (self._bad | bad).items() if path in refused}
        self._retired.hold_bad(self._bad)
        self._retired.add(before, after)
        for listener in self.listeners:
            listener()
        return names

    async def _refresh(self, name: Name, target: Path) -> None:
        """Look again at the files of a delta, which another server may have changed."""
        await self._adopt([target, *self._engine.store.files_of(*name)])

    async def _prune(self, name: Name, target: Path) -> None:
        """Remove the versions beyond those that are kept."""
        served = self._engine.store.versions(*name)
        needed = {served[0].version, *await self._needed(name)} if served else set()
        keep = self._keep_versions
        outdated = set(await self._on_disk(versions.outdated, target, keep, needed))
        if outdated:
            await self._remove([r for r in served if r.path in outdated], sorted(outdated))
            await self._adopt(outdated, checked=True)

    async def _remove(self, records: Sequence[Record], files: Sequence[Path]) -> None:
        """Remove files, the default one first; their values stay for requests that run."""
        for record in records:
            self._retired.hold([record.key])  # at first, since batches run after the load, too
            if record not in self._engine.cache:
                try:
                    await self._try_out(record)
                except (InvalidDeltaError, DeltaUnavailableError) as error:
                    logger.warning("%s can't be loaded before it is removed: %s", record.key, error)
        await self._on_disk(versions.remove, files)
        for path in files:
            self._engine.forget(path)

    async def _needed(self, name: Name) -> set[str]:
        found = [await self._on_disk(of_name, name) for of_name in self.needed]
        return {version for versions in found for version in versions}

    async def _refuse_needed(self, name: Name, records: Iterable[Record]) -> None:
        if needed := await self._needed(name) & {record.version for record in records}:
            raise ConflictError(
                f"the traffic of {name[0]}/{name[1]} needs version {', '.join(sorted(needed))}; "
                f"change it first (/traffic/{name[0]}/{name[1]})"
            )

    def _change(self, name: Name, before: Sequence[Record]) -> Change:
        served = tuple(record.version for record in self._engine.store.versions(*name))
        return Change(before[0].version if before else None, served)


def _default_path(record: Record) -> Path:
    return kept[0] if (kept := default_of(record.path)) else record.path


def _leads(target: Path, ranked: Sequence[Record]) -> bool:
    """Tell whether the default delta comes from a default file, or from one kept beside it."""
    return bool(ranked) and _default_path(ranked[0]) == target


def _fresh(old: Store, new: Store, names: Iterable[Name]) -> list[Record]:
    """Return the records whose files are new or have changed."""
    fresh = []
    for name in sorted(names):
        before, after = old.files_of(*name), new.files_of(*name)
        fresh += [r for r in new.versions(*name) if after[r.path] is not before.get(r.path)]
    return fresh


def _keep_last_good(old: Store, new: Store, names: Iterable[Name]) -> dict[Path, Key]:
    """Go on with the versions of default files that are refused now.

    Returns the files of versions that are not kept: these can't be loaded until it is good again.
    """
    refused = {path for path, _ in new.rejected}
    bad = {}
    for name in names:
        for path, record in old.files_of(*name).items():
            if path in refused and default_of(path) is None:
                new.keep(record)
                if record.kept_file not in new.files_of(*name):
                    bad[path] = record.key
    return bad


def _log_refused(old: Store, new: Store) -> None:
    known = set(old.all_rejected)
    refused = [item for item in new.all_rejected if item not in known]
    for path, reason in refused[:_MAX_LOGGED]:
        logger.warning("not served: %s: %s", path, reason)
    if len(refused) > _MAX_LOGGED:
        logger.warning("not served: %d more files", len(refused) - _MAX_LOGGED)
