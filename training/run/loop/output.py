"""The file of a run's delta: reserved while the run trains, written at its end, never lost.

Two runs for one file would each train for hours, and the later one would replace the result of the
other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from deltas.delta import Delta
from deltas.format import write_delta
from training.errors import ConfigError, TrainingError
from training.run import distributed


@contextmanager
def reserve(path: Path, *, overwrite: bool) -> Iterator[None]:
    """Keep other runs away from the file of a delta until this one ends.

    Raises:
        ConfigError: another run is at work on it, it has come since this run was prepared, or its
            folder can't be written.
    """
    _check_writable(path.parent)
    if not distributed.is_first():
        yield
        return
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another run is at work on {path}; wait for it, or give another --out"
        ) from error
    try:
        if path.exists() and not overwrite:
            raise already_exists(path)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def already_exists(path: Path) -> ConfigError:
    """Return the error of a run that may not replace a file."""
    return ConfigError(f"{path} exists; give --overwrite to replace it, or another --out")


def write_result(delta: Delta, path: Path, *, overwrite: bool) -> Delta:
    """Write the delta of a run.

    Raises:
        TrainingError: a file has come since the run began; the delta lies beside it.
    """
    try:
        return write_delta(delta, path, replace=overwrite)
    except FileExistsError as error:
        names = (path.with_name(f".{path.stem}.{number}{path.suffix}") for number in count(2))
        beside = next(name for name in names if not name.exists())
        write_delta(delta, beside, replace=False)
        raise TrainingError(
            f"{path} was written by another program during the run; the result is in {beside}"
        ) from error


def _check_writable(folder: Path) -> None:
    """Find out before the training whether its result can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        for path in (folder, *folder.parents):
            if path.is_file():
                raise ConfigError(f"--out: {path} is a file; name a folder") from error
        reason = error.strerror or str(error)
        raise ConfigError(f"--out: can't write into {folder} ({reason})") from error
