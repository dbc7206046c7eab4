"""Finds the key of a secret, and follows the file of keys while the server runs.

A request's secret is compared with every key, in constant time. The file is read again when it has
changed; if it is broken or gone then, the previous keys stay. Read `app.keys.middleware` next.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hmac
import logging
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple

from app.errors import ForbiddenError, UnauthorizedError
from app.keys.key import ANONYMOUS, Key, KeysError, Scope, checked, digest_of, parse_keys
from app.keys.usage import Usage, limits_of

logger = logging.getLogger(__name__)

_CHECK_EVERY_S = 1.0
_MAX_FILE_BYTES = 4 * 2**20
_OTHERS_CAN_READ = 0o004
_OTHERS_CAN_WRITE = 0o022


class Caller:
    """A key in use: its rights, and what it has used of its limits."""

    def __init__(self, key: Key, usage: Usage) -> None:
        self.key = key
        self.usage = usage
        self.digest = bytes.fromhex(key.sha256 or "")
        self.may_use_all = "*" in key.tasks
        self._tasks = re.compile("|".join(map(fnmatch.translate, key.tasks)) or r"(?!)")

    @property
    def has_expired(self) -> bool:
        """True from the key's day of expiry on."""
        expires_at = self.key.expires_at
        return expires_at is not None and time.time() >= expires_at

    def may_use(self, task: str) -> bool:
        """Return True if the key names the task, whether there is such a task or not."""
        return self.may_use_all or self._tasks.match(task) is not None

    def check_scope(self, scope: Scope) -> None:
        """Refuse a request that needs a scope that the key lacks.

        Raises:
            ForbiddenError: the key lacks this scope.
        """
        if scope not in self.key.scopes:
            raise ForbiddenError(
                f"the key {self.key.name!r} lacks the scope {scope!r}, which this request needs"
            )

    def check_task(self, task: str) -> None:
        """Refuse a task that the key does not name.

        Raises:
            ForbiddenError: the key does not name the task.
        """
        if not self.may_use(task):
            raise ForbiddenError(f"the key {self.key.name!r} may not use the task {task[:128]!r}")

    def check_all(self, why: str) -> None:
        """Refuse what concerns all tasks, unless the key names them all.

        Raises:
            ForbiddenError: the key does not have the pattern `*`.
        """
        if not self.may_use_all:
            raise ForbiddenError(
                f"the key {self.key.name!r} is for some tasks only; {why}, so it needs a key for "
                'all tasks (tasks = ["*"])'
            )


_NO_RIGHTS = Key(name=ANONYMOUS, scopes=frozenset(), tasks=())


class _Seen(NamedTuple):
    """The facts by which a changed file is noticed."""

    modified_ns: int
    changed_ns: int
    num_bytes: int
    inode: int


class Keyring:
    """All keys of a server.

    Args:
        inline: keys that never change, as TOML; empty for none.
        path: file with more keys; None for none.
        max_queue_rows: most rows in the queue, of which a key may have a share.

    Attributes:
        is_stale: True if the file could not be used when it was last read.

    Raises:
        KeysError: keys are wrong, or the file cannot be read.
    """

    def __init__(self, inline: str, path: Path | None, max_queue_rows: int) -> None:
        self._path = path
        self.is_stale = False
        self._max_queue_rows = max_queue_rows
        self._callers: dict[str, Caller] = {}
        self._no_rights = Caller(_NO_RIGHTS, Usage(_NO_RIGHTS, max_queue_rows))
        try:
            self._inline = parse_keys(inline)
        except KeysError as error:
            raise KeysError(f"DELTABERT_KEYS: {error}") from None
        self._seen = _look(path)
        self._use(self._read())

    @property
    def names(self) -> list[str]:
        """The names of all keys, sorted."""
        return sorted(self._callers)

    @property
    def anonymous(self) -> Caller:
        """The caller of requests without a key; has no rights unless the keys give it some."""
        given = self._callers.get(ANONYMOUS)
        return self._no_rights if given is None or given.has_expired else given

    def find(self, secret: bytes) -> Caller | None:
        """Return the caller with this secret, or None.

        All digests are compared, so that the time tells nothing about the keys.
        """
        digest, found = digest_of(secret), None
        for caller in self._callers.values():
            if hmac.compare_digest(digest, caller.digest):
                found = caller
        return found

    def renewed(self, caller: Caller) -> Caller:
        """Return the caller with the rights that its key has now; for work that takes long.

        Raises:
            UnauthorizedError: the key was removed or replaced, or has expired.
        """
        now = self._callers.get(caller.key.name)
        if now is None or now.digest != caller.digest or now.has_expired:
            name = caller.key.name
            raise UnauthorizedError(
                f"the key {name!r} was removed, or has expired; ask for another"
            )
        return now

    async def watch(self) -> None:
        """Read the file again whenever it has changed, until the task is cancelled."""
        while self._path is not None:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                await asyncio.to_thread(self.reload)
            except Exception:  # whatever it is, the next change must be seen
                logger.exception("the file of keys was not read; its previous content stays in use")

    def reload(self) -> None:
        """Read the file if it has changed; a file that can't be used is logged once."""
        seen = _look(self._path)
        if seen == self._seen:
            return
        previous, self._seen = self._seen, seen
        self.is_stale = True
        keys, problem = None, None
        try:
            keys = self._read()
        except KeysError as error:
            problem = error
        if _look(self._path) != seen:  # half of it may have been read; the next look reads it again
            self._seen = previous
            return
        if keys is None:
            logger.error("the previous file of keys stays in use: %s", problem)
            return
        before = set(self._callers)
        self._use(keys)
        self.is_stale = False
        after = set(self._callers)
        logger.info(
            "read the file of keys again: %d keys, added %s, removed %s",
            len(after),
            ", ".join(sorted(after - before)) or "none",
            ", ".join(sorted(before - after)) or "none",
        )

    def _read(self) -> dict[str, Key]:
        if self._path is None:
            return self._inline
        try:
            if not stat.S_ISREG(self._path.stat().st_mode) and not self._path.is_dir():
                raise KeysError("not a file")  # a pipe would be waited for
            with self._path.open("rb") as file:
                raw = file.read(_MAX_FILE_BYTES + 1)
            keys = parse_keys(_decoded(raw))
            both = keys.keys() & self._inline.keys()
            if both:
                raise KeysError(f"DELTABERT_KEYS has a key {min(both)!r}, too; rename one")
            return checked(self._inline | keys)
        except KeysError as error:
            raise KeysError(f"{self._path}: {error}") from None
        except OSError as error:
            raise KeysError(f"{self._path}: {error.strerror or error}") from None

    def _use(self, keys: dict[str, Key]) -> None:
        """Replace the callers in one step; what a key has used stays unless its limits change."""
        callers = {}
        for name, key in keys.items():
            known = self._callers.get(name)
            is_same = known is not None and known.usage.limits == limits_of(key)
            usage = known.usage if known and is_same else Usage(key, self._max_queue_rows)
            callers[name] = Caller(key, usage)
        self._callers = callers
        if self._path is not None:
            _warn_of_mode(self._path)
        if not callers:
            logger.warning("there is no key, so every request that needs one is refused")


def _decoded(raw: bytes) -> str:
    if len(raw) > _MAX_FILE_BYTES:
        raise KeysError(f"more than {_MAX_FILE_BYTES:,} bytes; this is no file of keys")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KeysError(f"not UTF-8 at byte {error.start}") from None


def _look(path: Path | None) -> _Seen | None:
    """Return the facts of a file, or None if there is none."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    if found is None:
        return None
    return _Seen(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def _warn_of_mode(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # it has gone since it was read
        return
    if mode & _OTHERS_CAN_WRITE:
        logger.warning("%s: others can write to it and so make keys; use chmod 600", path)
    elif mode & _OTHERS_CAN_READ:
        logger.warning("%s: everyone can read it; use chmod 600", path)
