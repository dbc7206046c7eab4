"""Keeps a local copy of a remote folder: `sync` downloads what is new and removes what is gone.

A file is checked as a delta, with its digest, before it appears in the copy, in one step. So
readers of the copy see whole files at any moment, even after a crash. If a file is replaced by one
that is no sound delta, the copy keeps the earlier content. While the service is down, the copy
stays as it is. It lies in `$XDG_CACHE_HOME/deltabert/remote` and can be deleted. Tested by
tests/integration/deltas/store/test_sync.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from deltas.errors import DeltaFormatError
from deltas.format import SUFFIX, parse_delta, write_atomically
from deltas.kernels import disk_cache
from deltas.store.address import RemoteAddress, is_safe_name
from deltas.store.remote import RemoteError, RemoteFile, RemoteFolder, open_remote, s3_endpoint
from deltas.store.traffic import TRAFFIC_SUFFIX

MAX_BYTES = 10 * 2**30  # of all files of a copy, unless the caller allows more
MAX_FILES = 100_000
MAX_FILE_BYTES = 2 * 2**30
_MAX_LISTED = 2 * MAX_FILES  # objects of any kind, model cards included
_LARGE_BYTES = 8 * 2**20  # such files are read one at a time, since each is held in memory
_THREADS = 8
_BATCH_FILES = 256  # after these the index is saved, so that a first sync can be continued
_MAX_FAILURES = 3  # files that could not be read; then the service counts as down
_LOCK_S = 60.0
_INDEX, _LOCK, _TEMPORARY = ".index.json", ".lock", ".tmp"


class _Copied(BaseModel):
    """A file of the copy, as it was when it was written."""

    tag: str
    num_bytes: int
    mtime_ns: int


class _Refusal(BaseModel):
    """A remote content that is no sound delta; it is not read again."""

    tag: str
    reason: str


class _Index(BaseModel):
    """The state of a copy, beside its files. A lost index means that all files are read again."""

    release: str = ""  # another release may accept what this one refuses
    complete_at: datetime | None = None
    files: dict[str, _Copied] = {}
    refused: dict[str, _Refusal] = {}


@dataclass(frozen=True)
class Synced:
    """A local copy of a remote folder, and what a sync did to it.

    Attributes:
        address: the remote folder.
        folder: the local copy.
        complete_at: the time when the copy was last equal to the remote folder.
        problem: the reason why it may be older than the remote folder; "" if it is equal.
        num_files: the files in the copy.
        num_changed: the files that this sync has written or removed.
        refused: files that are not copied, as paths in the copy, with the reason.
    """

    address: RemoteAddress
    folder: Path
    complete_at: datetime
    problem: str
    num_files: int
    num_changed: int
    refused: tuple[tuple[Path, str], ...]

    def describe(self) -> str:
        """Return one line for a log."""
        since = f"{self.complete_at:%Y-%m-%dT%H:%M:%SZ}"
        if self.problem:
            return f"{self.address}: {self.problem}; the copy of {since} is used"
        return f"{self.address}: {self.num_files:,} files, {self.num_changed:,} of them changed"


def sync(
    address: RemoteAddress, folder: Path | None = None, *, max_bytes: int = MAX_BYTES
) -> Synced:
    """Bring the local copy of a remote folder up to date, or keep it while the service is down.

    Args:
        address: the remote folder.
        folder: the local copy, made if missing; None takes the one in the user's cache.
        max_bytes: the size of the largest remote folder that is copied.

    Raises:
        RemoteError: the service is down and there is no complete copy, or the copy can't be
            written.
        DeltaError: the library for this service is not installed.
    """
    remote = open_remote(address)
    try:
        folder = copy_folder(address) if folder is None else folder
        with _locked(address, folder):
            copy = _Copy(address, folder, max_bytes)
            try:
                copy.update(remote)
            except RemoteError as error:
                return copy.synced(error)
            except OSError as error:
                return copy.synced(_not_written(address, error))
            return copy.synced()
    except OSError as error:
        raise _not_written(address, error) from error


def _not_written(address: RemoteAddress, error: OSError) -> RemoteError:
    reason = f"the local copy can't be written ({error.strerror or error})"
    hint = "set XDG_CACHE_HOME to a folder with space that can be written"
    return RemoteError(address, f"{reason}; {hint}")


def copy_folder(address: RemoteAddress) -> Path:
    """Return the folder of an address's copy; other endpoints of the service have other copies.

    Raises:
        OSError: there is neither `XDG_CACHE_HOME` nor a home folder.
    """
    endpoint = s3_endpoint() if address.scheme == "s3" else os.environ.get("HF_ENDPOINT", "")
    digest = hashlib.sha256(f"{address}\n{endpoint}".encode()).hexdigest()[:12]
    name = f"{address.scheme}-{address.place.replace('/', '-')}-{digest}"
    try:
        return disk_cache.folder() / "remote" / name
    except RuntimeError as error:
        raise FileNotFoundError(0, "there is no home folder") from error


@contextmanager
def _locked(address: RemoteAddress, folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder that no other user can write to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk_cache.check_private(folder)
    try:
        lock = FileLock(folder / _LOCK, timeout=_LOCK_S).acquire()
    except Timeout:
        raise RemoteError(address, f"another process has synced it for {_LOCK_S:g} s") from None
    with lock:
        yield


@dataclass
class _Copy:
    """One sync of a copy; the folder is locked meanwhile."""

    address: RemoteAddress
    folder: Path
    max_bytes: int
    num_changed: int = 0
    unusable: dict[str, str] = field(default_factory=dict)  # files that are not even read
    failures: list[RemoteError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = _Index()
        with suppress(FileNotFoundError, ValidationError):
            self.index = _Index.model_validate_json((self.folder / _INDEX).read_bytes())
        if self.index.release != (release := version("deltabert")):
            self.index.release, self.index.refused = release, {}

    def synced(self, error: RemoteError | None = None) -> Synced:
        """Return the result; raise the error if the copy was never complete."""
        if self.index.complete_at is None:
            raise error or RemoteError(self.address, "there is no copy")
        refused = {name: one.reason for name, one in self.index.refused.items()} | self.unusable
        paths = ((self.folder / name, why) for name, why in refused.items())
        return Synced(
            self.address,
            self.folder,
            self.index.complete_at,
            error.reason if error else "",
            len(self.index.files),
            self.num_changed,
            tuple(paths),
        )

    def update(self, remote: RemoteFolder) -> None:
        """Download what is new, then remove what is gone.

        Raises:
            RemoteError: the copy is not equal to the remote folder; all its files are sound.
        """
        listed = self._usable(remote.files())
        self.index.refused = {
            name: refusal
            for name, refusal in self.index.refused.items()
            if name in listed and listed[name].tag == refusal.tag
        }
        wanted = [file for file in listed.values() if not self._is_current(file)]
        small = [file for file in wanted if file.num_bytes <= _LARGE_BYTES]
        large = [file for file in wanted if file.num_bytes > _LARGE_BYTES]
        self._download(remote, small, _THREADS)
        self._download(remote, large, 1)
        if self.failures:
            raise self.failures[0]
        self._remove_all_but({*listed, *self.unusable})
        self.index.complete_at = datetime.now(UTC)
        self._save()

    def _usable(self, found: Iterable[RemoteFile]) -> dict[str, RemoteFile]:
        """Choose the files to copy, by name; the others are noted as unusable or left out."""
        usable: dict[str, RemoteFile] = {}
        total = 0
        for number, file in enumerate(found, 1):
            if file.name.endswith((SUFFIX, TRAFFIC_SUFFIX)) and not _is_hidden(file.name):
                if reason := _why_unusable(file):
                    is_safe = is_safe_name(file.name)
                    name = file.name if is_safe else quote(file.name, safe="")[:200]
                    self.unusable[name] = reason
                else:
                    usable[file.name] = file
                    total += file.num_bytes
            if number > _MAX_LISTED or len(usable) + len(self.unusable) > MAX_FILES:
                limits = f"{MAX_FILES:,} deltas and {_MAX_LISTED:,} files in all"
                raise RemoteError(self.address, f"has more than {limits}; name a smaller folder")
        if total > self.max_bytes:
            reason = f"has {total:,} bytes of deltas; at most {self.max_bytes:,} are copied"
            raise RemoteError(self.address, f"{reason} (DELTABERT_REMOTE_MAX_BYTES)")
        if not any(name.endswith(SUFFIX) for name in usable):
            reason = "has no delta; upload one, or correct the name of the folder"
            raise RemoteError(self.address, reason)
        return usable

    def _is_current(self, file: RemoteFile) -> bool:
        """Return whether a remote content is in the copy, or known to be no sound delta."""
        refusal = self.index.refused.get(file.name)
        if refusal is not None and refusal.tag == file.tag:
            return True
        copied = self.index.files.get(file.name)
        if copied is None or copied.tag != file.tag:
            return False
        try:
            found = (self.folder / file.name).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (copied.num_bytes, copied.mtime_ns)

    def _download(self, remote: RemoteFolder, files: Sequence[RemoteFile], threads: int) -> None:
        with ThreadPoolExecutor(threads, thread_name_prefix="sync") as pool:
            for start in range(0, len(files), _BATCH_FILES):
                batch = files[start : start + _BATCH_FILES]
                for file, outcome in zip(
                    batch, pool.map(partial(self._fetch, remote), batch), strict=True
                ):
                    self._note(file, outcome)
                self._save()
                if len(self.failures) >= _MAX_FAILURES:
                    return

    def _fetch(self, remote: RemoteFolder, file: RemoteFile) -> _Copied | _Refusal | RemoteError:
        """Read, check and write one file."""
        if len(self.failures) >= _MAX_FAILURES:
            return self.failures[0]
        try:
            content = remote.read(file)
        except RemoteError as error:
            self.failures.append(error)
            return error
        if reason := _why_unsound(file.name, content):
            return _Refusal(tag=file.tag, reason=reason)
        path = self.folder / file.name
        write_atomically(path, content)
        return _Copied(tag=file.tag, num_bytes=len(content), mtime_ns=path.stat().st_mtime_ns)

    def _note(self, file: RemoteFile, outcome: _Copied | _Refusal | RemoteError) -> None:
        if isinstance(outcome, _Copied):
            self.index.files[file.name] = outcome
            self.index.refused.pop(file.name, None)
            self.num_changed += 1
        elif isinstance(outcome, _Refusal):
            if file.name in self.index.files:
                outcome.reason += "; the earlier content is kept"
            self.index.refused[file.name] = outcome

    def _remove_all_but(self, names: set[str]) -> None:
        """Remove the files that are not in the remote folder, and what a crash has left."""
        for path in list(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            is_left = path.name.startswith(".") and path.suffix == _TEMPORARY
            is_gone = name.endswith((SUFFIX, TRAFFIC_SUFFIX)) and name not in names
            if (is_left or is_gone) and not path.is_dir():
                path.unlink(missing_ok=True)
                self.index.files.pop(name, None)
                self.num_changed += is_gone

    def _save(self) -> None:
        write_atomically(self.folder / _INDEX, self.index.model_dump_json().encode())


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _why_unusable(file: RemoteFile) -> str:
    """Return why a file is not even read; "" if it is."""
    folders = file.name.split("/")[:-1]
    if not is_safe_name(file.name) or any(part.endswith(SUFFIX) for part in folders):
        return "the name has unusual characters or parts, and can't become a path"
    if not 0 < file.num_bytes <= MAX_FILE_BYTES:
        return f"has {file.num_bytes:,} bytes; 1 to {MAX_FILE_BYTES:,} are allowed"
    return ""


def _why_unsound(name: str, content: bytes) -> str:
    """Return why a content is no sound delta, or no rule of traffic; "" if it is."""
    if name.endswith(SUFFIX):
        try:
            parse_delta(Path(name), content)
        except DeltaFormatError as error:
            return error.reason
        return ""
    try:
        is_object = isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        is_object = False
    return "" if is_object else "not a JSON object"
