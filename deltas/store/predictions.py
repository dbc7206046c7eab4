"""Reads the predictions that a run leaves beside its delta: `<strategy>.predictions.parquet`.

The file holds row numbers, labels and logits of the selection and validation rows, and never a
text: other columns are not read. It names the version of its delta, so that the predictions of a
delta are never taken for those of the version that replaced it. `training.run.output` writes it.
Tested by tests/unit/deltas/store/test_predictions.py.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from deltas.errors import PredictionsError
from deltas.store.files import default_of
from deltas.store.store import Record

ENDING = ".predictions.parquet"
VERSION_KEY = b"deltabert.version"
COLUMNS = ("split", "row", "gold", "logits")
MAX_ROWS = 10_000  # in one answer
_MAX_NUMBERS = 500_000  # logits in one answer, about 5 MB of JSON
_MAX_FILE_BYTES = 256 * 2**20
_MAX_FILE_ROWS = 5_000_000


class PredictedRows(BaseModel):
    """Some rows of one split with their labels and logits; never a text."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[
        str | None,
        Field(description="The delta's version; null if the file is from an earlier release."),
    ]
    splits: Annotated[dict[str, int], Field(description="Rows of each split of the file.")]
    split: str
    rows: Annotated[list[int], Field(description="Numbers in the file of the data, from 1.")]
    gold: Annotated[
        list[int | float | list[int]],
        Field(description="A label's code, a value, or 0 or 1 for each label."),
    ]
    logits: Annotated[
        list[list[float]], Field(description="In the order of the labels; already calibrated.")
    ]
    next: Annotated[int | None, Field(description="Offset of the next rows; null after the last.")]


def predictions_path(delta: Path) -> Path:
    """Return the path of the predictions that belong to a delta's file."""
    return delta.with_name(delta.stem + ENDING)


def read_rows(record: Record, split: str | None, offset: int, limit: int) -> PredictedRows:
    """Read some rows of a delta's predictions.

    Args:
        record: the delta.
        split: name of the split; None takes the one that the delta is judged by.
        offset: number of rows of the split to pass over.
        limit: most rows to read; fewer are read if there are many labels.

    Raises:
        PredictionsError: there is no such file or split, or the file is no sound one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    named = f"{record.manifest.task.name}/{record.manifest.strategy.served_as}"
    path = _find(record, named)
    try:
        table, version = _read(path)
        found = Counter(table["split"].to_pylist())
        split = split or record.manifest.validation_split or "selection"
        if split not in found:
            known = ", ".join(map(str, found)) or "none"
            raise PredictionsError(f"no predictions of a split {split[:128]!r}. Available: {known}")
        part = table.filter(pc.equal(table["split"], split))
        width = max(1, len(part["logits"][0].as_py() or ()))
        end = offset + max(1, min(limit, _MAX_NUMBERS // width))
        rows, gold, logits = (
            part[name].slice(offset, end - offset).to_pylist() for name in COLUMNS[1:]
        )
        _check(logits, record.manifest.task.num_outputs)
        return PredictedRows(
            version=version,
            splits=dict(found),
            split=split,
            rows=rows,
            gold=gold,
            logits=logits,
            next=end if end < found[split] else None,
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise PredictionsError(
            f"the file of predictions of {named} is damaged ({type(error).__name__}); copy it "
            "again, or repeat the run"
        ) from error


def _find(record: Record, named: str) -> Path:
    """Return the file of a delta's predictions; a kept version shares the default file's place."""
    default = default_of(record.path)
    path = predictions_path(record.path if default is None else default[0])
    if not path.is_file():
        raise PredictionsError(
            f"there are no predictions of {named}: a run of training.fit leaves {path.name} beside "
            "its delta. Copy it there, or repeat the run"
        )
    version = _version_of(path, named)
    if version is None and default is not None:
        raise PredictionsError(
            f"the predictions beside {named} are not of version {record.version}"
        )
    if version not in (None, record.version):
        raise PredictionsError(
            f"the predictions beside {named} are of version {version}, not {record.version}; copy "
            f"the file of its run there, or ask for that version"
        )
    return path


def _version_of(path: Path, named: str) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if os.path.getsize(path) > _MAX_FILE_BYTES:  # noqa: PTH202 - of a file just found
            raise PredictionsError(f"the file of predictions of {named} is too large to serve")
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise PredictionsError(
            f"the file of predictions of {named} is no parquet file; copy it again, or repeat the "
            "run"
        ) from error
    found = metadata.get(VERSION_KEY)
    return None if found is None else found.decode(errors="replace")


def _read(path: Path) -> tuple[Any, str | None]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows > _MAX_FILE_ROWS:
            raise ValueError("too many rows")
        table = file.read(columns=list(COLUMNS))
    table.validate(full=True)
    version = (table.schema.metadata or {}).get(VERSION_KEY)
    return table, None if version is None else version.decode(errors="replace")


def _check(logits: list[Any], width: int) -> None:
    """Check that each row has a finite logit for each output of the head."""
    for row in logits:
        if len(row) != width or not all(map(math.isfinite, row)):
            raise ValueError("not one finite logit for each label")
