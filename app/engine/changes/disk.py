"""Reads and writes the files of changes: in one thread, within a time, one server at a time.

A file system may hang, for example one in a network. A call that takes too long fails, so that no
change waits for ever; the calls after it take their turn behind it in the thread, and fail likewise
while it hangs. Two servers over one folder take turns by a lock in it (`deltas.store.versions`).
Read `app.engine.changes.changes` first. Tested by tests/unit/app/engine/changes/test_disk.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.errors import ConflictError, InvalidDeltaError, StorageError
from deltas import DeltaError, DeltaFormatError, Record, read_manifest
from deltas.store.files import default_of, kept_files
from deltas.store.versions import FolderLock

logger = logging.getLogger(__name__)

T = TypeVar("T")
Name = tuple[str, str]  # task and strategy

LIMIT_S = 120.0  # for the files of one delta, which may be large
LIMIT_OF_ALL_S = 900.0  # for all files below all folders


class FileThread:
    """The thread in which changes read and write files.

    Args:
        root: folder that takes changes; None takes none.
    """

    def __init__(self, root: Path | None) -> None:
        self._thread = ThreadPoolExecutor(1, "changes")
        self._lock = FolderLock(root) if root is not None else None

    async def call(
        self, function: Callable[..., T], *arguments: Any, limit_s: float | None = None
    ) -> T:
        """Call a function in the thread.

        Args:
            function: reads or writes files.
            *arguments: its arguments.
            limit_s: seconds to wait for it; None takes `LIMIT_S`. It may end later.

        Raises:
            StorageError: files can't be read or written, or not within this time.
        """
        loop = asyncio.get_running_loop()
        limit_s = LIMIT_S if limit_s is None else limit_s
        timeout = asyncio.timeout(limit_s)
        try:
            async with timeout:
                return await loop.run_in_executor(self._thread, partial(function, *arguments))
        except OSError as error:  # a timeout is one, too
            reason = error.strerror or type(error).__name__
            if timeout.expired():
                reason = f"no answer within {limit_s:g} s; the change may still happen, so look"
            logger.warning("a change of deltas failed: %s", reason if timeout.expired() else error)
            raise StorageError(f"the folder of the deltas can't be used ({reason})") from error

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep other servers from changing the folder meanwhile.

        Raises:
            StorageError: another server has changed it for too long, or it can't be written.
        """
        if self._lock is None:
            yield
            return
        try:
            await self.call(self._lock.acquire)
            yield
        finally:
            # Not waited for: the lock is free before the thread reads or writes anything else.
            with suppress(RuntimeError):  # the server ends, which frees the lock
                self._thread.submit(self._lock.release)

    def close(self) -> None:
        """End the thread as soon as it is idle."""
        self._thread.shutdown(wait=False)


def reason_of(error: DeltaError) -> str:
    """Return the reason of an error without the path."""
    return error.reason if isinstance(error, DeltaFormatError) else str(error)


def append(path: Path, content: bytes) -> None:
    """Write the next part of an upload."""
    with path.open("ab") as file:
        file.write(content)


def read_upload(upload: Path, target: Path, name: Name) -> Record:
    """Read the header of an upload, and check its name and that of the file it would replace."""
    try:
        manifest, version = read_manifest(upload)
    except DeltaError as error:
        raise InvalidDeltaError(reason_of(error)) from None
    if manifest.key != name:
        found = "/".join(manifest.key)
        raise InvalidDeltaError(f"it is the delta {found}, not {name[0]}/{name[1]}; put it there")
    there = name_at(target)
    if there not in (None, name):
        raise ConflictError(
            f"the file of {name[0]}/{name[1]} holds {'/'.join(there)}; rename the strategy"
        )
    return Record(upload, manifest, version, upload.stat().st_size)


def name_at(path: Path) -> Name | None:
    """Return the delta that a file holds, since names of files are shortened; None for no delta."""
    try:
        return read_manifest(path)[0].key
    except DeltaError:
        return None


def version_before(target: Path, default: Record) -> str:
    """Return the version that was published last before the default one."""
    kept = [found[1] for path in kept_files(target) if (found := default_of(path))]
    older = kept[kept.index(default.version) + 1 :] if default.version in kept else kept
    if not older:
        raise ConflictError(
            f"no version was kept that is older than the default, {default.version}; "
            'name another one: {"version": ...}'
        )
    return older[0]
