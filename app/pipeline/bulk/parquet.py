"""Writes a parquet file from lines of JSON, in constant memory.

The lines are read twice: first for the type of each column, which no single line tells, then for
the values. A column whose values have several types becomes text, with its values as JSON. Tested
by tests/unit/app/pipeline/bulk/test_part.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.pipeline.bulk.output import ERROR

if TYPE_CHECKING:
    import pyarrow

_ROWS = 20_000  # in a row group


def write_parquet(lines: Path, made: Path) -> None:
    """Write the lines of a file as parquet; `error` becomes one text, as in CSV."""
    import pyarrow
    import pyarrow.parquet

    kinds: dict[str, set[str]] = {}
    for row in _rows(lines):
        for name, value in row.items():
            seen = kinds.setdefault(name, set())
            if value is not None:
                seen.add(_kind(value))
    kinds.setdefault(ERROR, set())
    kinds[ERROR] = kinds.pop(ERROR)  # it is the last column
    schema = pyarrow.schema([(name, _type(seen)) for name, seen in kinds.items()])
    as_json = [name for name, seen in kinds.items() if _type(seen) == "string" and seen != {"str"}]
    rows = _rows(lines)
    with pyarrow.parquet.ParquetWriter(made, schema) as writer:
        while group := list(islice(rows, _ROWS)):
            for row in group:
                for name in as_json:
                    if row.get(name) is not None:
                        row[name] = json.dumps(row[name], ensure_ascii=False)
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _rows(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open("rb") as file:
        for line in file:
            row = json.loads(line)
            if row.get(ERROR):
                row[ERROR] = f"{row[ERROR]['code']}: {row[ERROR]['message']}"
            yield row


def _kind(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "texts"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return "other"
    return type(value).__name__


def _type(seen: set[str]) -> pyarrow.DataType:
    import pyarrow

    if seen and seen <= {"int", "float"}:
        return pyarrow.float64() if "float" in seen else pyarrow.int64()
    if seen == {"bool"}:
        return pyarrow.bool_()
    return pyarrow.list_(pyarrow.string()) if seen == {"texts"} else pyarrow.string()
