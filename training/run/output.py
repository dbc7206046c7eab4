"""Writes the files of a run: its delta, and its predictions in `<strategy>.predictions.parquet`.

The file of the delta is reserved while the run trains: two runs for one file would each train for
hours, and the later one would replace the result of the other. The predictions are for confusions,
calibration and comparisons of runs, of which the manifest has a summary only. They are row numbers,
labels and logits, and never a text. Reading and writing them stand side by side, so that both know
the same columns. Called by `training.run.train_delta`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from deltas.delta import Delta
from deltas.format import write_atomically, write_delta
from deltas.store.predictions import VERSION_KEY
from training.data.rows import Rows
from training.errors import ConfigError, DataError, TrainingError
from training.run import distributed


@dataclass(frozen=True)
class PredictedSplit:
    """The rows of a split and their logits, float32 [R, C]."""

    name: str
    rows: Rows
    logits: Tensor


def write_predictions(path: Path, splits: Sequence[PredictedSplit], version: str = "") -> None:
    """Write the predictions of some splits in one step, as parquet.

    The file's metadata names the version of the delta, unless that is empty.

    Columns: `split`; `row`, the number in the file that the row was read from, counted from 1;
    `gold`, a label's code, a value, or a list of 0 and 1; `logits`, a list of float32.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    gold = [label for split in splits for label in split.rows.labels]
    table = pa.table(
        {
            "split": [split.name for split in splits for _ in range(len(split.rows))],
            "row": [
                split.rows.number(position)
                for split in splits
                for position in range(len(split.rows))
            ],
            "gold": gold,
            "logits": pa.array(
                [row for split in splits for row in split.logits.tolist()], pa.list_(pa.float32())
            ),
        }
    )
    if version:
        table = table.replace_schema_metadata({VERSION_KEY: version})
    content = BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_atomically(path, content.getvalue())


def read_predictions(path: Path, split: str) -> tuple[list[int], list[object], Tensor]:
    """Read a split's row numbers, labels and logits, float32 [R, C].

    Raises:
        DataError: the file is missing, damaged or no file of predictions, or has no such split.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, filters=[("split", "==", split)], partitioning=None)
        table.validate(full=True)
        rows, gold, logits = (table[name].to_pylist() for name in ("row", "gold", "logits"))
        values = torch.tensor(logits, dtype=torch.float32)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = f"no sound file of predictions ({error}); copy it again, or repeat the run"
        raise DataError(problem, path=path) from error
    if not rows:
        raise DataError(f"no predictions of a split {split!r}", path=path)
    if values.ndim != 2 or not all(isinstance(row, int) for row in rows):
        raise DataError(
            "no sound file of predictions: each row needs a number and logits", path=path
        )
    return rows, gold, values


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
