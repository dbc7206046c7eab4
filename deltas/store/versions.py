"""Changes the files of one delta, so that a crash at any moment leaves a whole version.

The rename that replaces the default file is the only step that changes the answers to requests that
name no version. Everything before it adds files, everything after it removes files that no request
needs. A kept file is a copy of the default file and no link to it: `cp` writes into the file that
it finds, which would change all of its links.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from deltas.errors import DeltaError
from deltas.format import SUFFIX, make_public, read_manifest
from deltas.store.files import default_of, kept_files, kept_path

_TEMPORARY = ".upload-"
_LOCK = ".changes.lock"
LOCK_S = 30.0  # for one change by another server, a second for most
_LEFT_OVER_S = 3600.0  # an upload that still writes after this time is none


class FolderLock:
    """Lets one server at a time change the files below a folder; the others wait.

    The file of the lock is hidden, and gone while nothing changes. `filelock` sees that a file it
    waited for was removed, and takes the next one.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = FileLock(root / _LOCK, timeout=LOCK_S, poll_interval=0.01)

    def acquire(self) -> None:
        """Wait until no other server changes the folder.

        Raises:
            OSError: the folder is gone or can't be written, or another server takes too long.
        """
        if not self._root.is_dir():  # `filelock` would make it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root))
        try:
            self._lock.acquire()
        except Timeout:
            reason = f"another server has changed it for {LOCK_S:g} s; try again"
            raise OSError(errno.EBUSY, reason, str(self._root)) from None

    def release(self) -> None:
        """Let the next server change the folder; does nothing without the lock."""
        if self._lock.is_locked:
            try:
                (self._root / _LOCK).unlink(missing_ok=True)
            finally:
                self._lock.release()


def new_upload(folder: Path) -> Path:
    """Make an empty hidden file for a delta that arrives in pieces; readers ignore it.

    Raises:
        OSError: the folder can't be written.
    """
    handle, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY, suffix=SUFFIX)
    os.close(handle)
    return Path(name)


def remove_left_over_uploads(root: Path) -> None:
    """Remove the hidden files of uploads that a killed server left below a folder."""
    with suppress(OSError):
        for path in root.rglob(f"{_TEMPORARY}*"):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                path.unlink()


def publish(upload: Path, target: Path, version: str, *, keep: bool) -> None:
    """Make an uploaded file the default of a delta, and keep it under its version.

    Args:
        upload: a checked delta on the disk of `target`; it is moved.
        target: the default file.
        version: the version of the upload.
        keep: whether to keep the present default file, too. A file that is not the default must
            not be kept before the change, because kept versions lead.

    Raises:
        OSError: a file can't be written; the default is then the earlier one.
    """
    _make_folder(target.parent)
    if not target.exists():  # versions of a delta that was removed must not come back
        remove(kept_files(target))
    now = _time_of_change(target)
    if keep and (present := keep_default(target)):
        os.utime(present, ns=(now, now))  # the version before, also after a rollback to it
    make_public(upload)
    os.utime(upload, ns=(now + 1, now + 1))
    _sync(upload)
    kept = kept_path(target, version)
    is_new = not kept.exists()
    upload.replace(kept)
    try:
        _sync(target.parent)
        _copy(kept, target)
    except OSError:
        if is_new and _version_at(target) != version:  # a refused version must not be served
            kept.unlink(missing_ok=True)
        raise


def _time_of_change(target: Path) -> int:
    """Return a time after that of each kept file, in nanoseconds.

    It is finer than the file system's own clock, which may give equal times. A clock that was set
    back, or that of another server, must not make a new version the oldest one.
    """
    newest = 0
    for path in kept_files(target)[:1]:
        with suppress(FileNotFoundError):  # another server has just removed it
            newest = path.stat().st_mtime_ns
    return max(time.time_ns(), newest + 1)


def _version_at(path: Path) -> str | None:
    """Return the version of a delta's file; None if there is no delta."""
    try:
        return read_manifest(path)[1]
    except DeltaError:
        return None


def switch(kept: Path, target: Path, *, keep: bool) -> None:
    """Make a kept version the default one, and keep the present default as `publish` does.

    Raises:
        OSError: a file can't be read or written; the default is then the earlier one.
    """
    if keep:
        keep_default(target)
    _copy(kept, target)


def keep_default(target: Path) -> Path | None:
    """Keep a default file under its version, unless it is kept already or is no delta.

    Returns the file that keeps it.

    Raises:
        OSError: the file can't be written.
    """
    try:
        _, version = read_manifest(target)
        kept = kept_path(target, version)
    except DeltaError:
        return None
    if not kept.exists():
        _copy(target, kept, changed_ns=target.stat().st_mtime_ns)
    return kept


def remove(files: Sequence[Path]) -> None:
    """Remove files of one delta in this order; some may be gone already.

    Raises:
        OSError: a file can't be removed.
    """
    for path in files:
        path.unlink(missing_ok=True)
        _sync(path.parent)


def outdated(target: Path, most: int, needed: Collection[str]) -> list[Path]:
    """Return the kept files beyond the newest ones that may go.

    Args:
        target: the default file.
        most: number of versions to keep, the needed ones included.
        needed: versions that stay, whatever their age.
    """
    kept = {path: default_of(path) for path in kept_files(target)}
    others = [path for path, found in kept.items() if found and found[1] not in needed]
    return others[max(0, most - (len(kept) - len(others))) :]


def _copy(source: Path, target: Path, *, changed_ns: int | None = None) -> None:
    """Copy a file in one step, with a given or the present time of change."""
    temporary = new_upload(target.parent)
    try:
        shutil.copyfile(source, temporary)
        make_public(temporary)
        if changed_ns is not None:
            os.utime(temporary, ns=(changed_ns, changed_ns))
        _sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that their names are on the disk, too."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
