"""Keeps files that a later process would otherwise make again: machine code, measured numbers.

They lie in `$XDG_CACHE_HOME/deltabert`, by default `~/.cache/deltabert`. A file is written at once
or not at all, and begins with the digest of its content, so that a damaged one counts as missing.
Everything here can be deleted at any time. A folder that cannot be used costs time, not answers: it
is logged once. One that other users can write to is not used, since the machine code in it is run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from threading import Event

logger = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size
_warned = Event()


def folder() -> Path:
    """Return the folder of the cache, which may not exist.

    Raises:
        RuntimeError: there is neither `XDG_CACHE_HOME` nor a home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a path that is not absolute counts as unset.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # noqa: PTH117
    return root / "deltabert"


def read(name: str) -> bytes | None:
    """Return the content of a file; None if it is missing, unreadable or damaged."""
    try:
        check_private(folder())
        stored = (folder() / name).read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        _warn("read", error)
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged and made again", folder() / name)
        return None
    return content


def write(name: str, content: bytes) -> None:
    """Write or replace a file; an error is logged, once in a process."""
    try:
        target = folder()
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(target)
        with tempfile.NamedTemporaryFile(prefix=f".{name}.", dir=target, delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(hashlib.sha256(content).digest() + content)
                file.flush()
                temporary.replace(target / name)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
    except (OSError, RuntimeError) as error:
        _warn("write", error)


def check_private(target: Path) -> None:
    """Check that no other user can put files into a folder.

    Raises:
        OSError: the folder is missing, belongs to another user, or others may write to it.
    """
    found = target.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{target} belongs to another user")
    if found.st_mode & 0o022:
        raise PermissionError(f"other users can write to {target}")


def _warn(what: str, error: Exception) -> None:
    if not _warned.is_set():
        _warned.set()
        logger.warning(
            "cannot %s the cache of compiled kernels and measured settings (%s), so that every "
            "start makes them again; set XDG_CACHE_HOME to a folder that can be written",
            what,
            error,
        )
