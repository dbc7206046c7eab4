"""Reads columns of parquet and Arrow files, with the names of class labels.

`datasets` writes the names of a column's codes into the schema, for single labels and for lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.files.columns import Columns, find_columns, plain
from training.data.files.content import foreign_format, is_json, is_text, read_head
from training.errors import DataError, counted

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET, _ARROW = b"PAR1", b"ARROW1"


def read_table(path: Path, wanted: Sequence[str]) -> Columns:
    """Read the wanted columns; values keep their types, and codes stay codes.

    Raises:
        DataError: the file is damaged, or lacks a wanted column.
    """
    import pyarrow as pa

    head = read_head(path)
    is_arrow = head.startswith(_ARROW) or path.suffix.lower() != ".parquet"
    if not head.startswith((_ARROW, _PARQUET)):
        problem = foreign_format(head)
        if not problem and is_text(head):
            problem = "the content is text, whatever the file is called; rename it to end in "
            problem += ".jsonl" if is_json(head.decode(errors="replace")) else ".csv"
        if problem:
            raise DataError(problem, path=path)
    try:
        if head.startswith(_PARQUET) or not is_arrow:
            table = _read_parquet(path, wanted)
        else:
            table = _read_arrow(path, is_file=head.startswith(_ARROW))
        positions = find_columns(path, wanted, table.schema.names)
        found = table.select(positions)
        found.validate(full=True)  # text that isn't UTF-8 would fail much later, without a name
    except (pa.ArrowException, OSError) as error:
        kind = "Arrow" if is_arrow else "parquet"
        problem = f"not a sound {kind} file ({error}); write or fetch it again"
        raise DataError(problem, path=path) from error
    values = {
        column: _values(path, column, found.column(number)) for number, column in enumerate(wanted)
    }
    features = _features(table.schema.metadata or {})
    names = {
        column: _class_names(features.get(found.schema.names[number]))
        for number, column in enumerate(wanted)
    }
    return Columns(
        path,
        found.num_rows,
        values,
        class_names={column: known for column, known in names.items() if known},
        reading_notes=(f"{path.name}: {counted(found.num_rows, 'row')}",),
    )


def _values(path: Path, column: str, found: pa.ChunkedArray) -> list[Any]:
    try:
        return [plain(value) for value in found.to_pylist()]
    except (OverflowError, ValueError) as error:  # such as a date in the year 146,000,000,000
        problem = f"holds a value of type {found.type} that is out of range ({error})"
        raise DataError(problem, path=path, column=column) from error


def _read_parquet(path: Path, wanted: Sequence[str]) -> pa.Table:
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    positions = find_columns(path, wanted, names)
    # Of a large file, the other columns are not read.
    columns = [names[position] for position in positions]
    return pq.read_table(path, columns=columns, partitioning=None)


def _read_arrow(path: Path, *, is_file: bool) -> pa.Table:
    """Read an Arrow file, or an Arrow stream, which `datasets` keeps in its cache."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        return reader.read_all()


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return the description of the columns that `datasets` writes into a schema, if it has one."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a column of class labels, or of lists of them; () for other columns."""
    if isinstance(feature, list) and feature:  # an old form of lists
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return ()
    if isinstance(names := feature.get("names"), list):
        return tuple(map(str, names))
    return _class_names(feature.get("feature"))
