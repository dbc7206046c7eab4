"""Write a file in one step: readers see the old or the whole new content, even after a crash."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file in one step: readers see the old or the new content, even after a crash.

    Raises:
        FileExistsError: the file exists, and `replace` is False.
        OSError: it can't be written; `filename` is its path. Nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        make_public(temporary)
        if replace:
            temporary.replace(path)
        else:
            _move_to_new(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def _move_to_new(temporary: Path, path: Path) -> None:
    """Move a file to a path where no file is; renaming alone would replace one."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        path.touch(exist_ok=False)
        temporary.replace(path)
    else:
        temporary.unlink()


def make_public(path: Path, mode: int = 0o666) -> None:
    """Give a temporary file or folder the usual mode: a server may run as another user."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)
