"""Reads named columns from a file: CSV and its like, JSON, parquet or Arrow.

Errors name the file, the row and the column; rows are counted from 1, without a CSV's header and
without blank lines. No value is changed: `007`, `NA` and `true` stay texts in CSV. That is why
pandas reads none of these: it fills short CSV rows up without an error, renames columns that occur
twice, and turns integers with gaps into floats. The formats are in `training.data.files.delimited`,
`training.data.files.json_rows` and `training.data.files.tables`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from deltas.errors import did_you_mean
from training.data.files.columns import Columns
from training.data.files.delimited import DelimitedOptions, read_delimited
from training.data.files.dialect import SUFFIXES
from training.data.files.json_rows import read_json
from training.data.files.tables import read_table
from training.errors import DataError

logger = logging.getLogger(__name__)

_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = (".parquet", ".arrow", ".feather")
_KNOWN = (*SUFFIXES, *_JSON, *_TABLES)
_FOREIGN = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".xlsm"), "save the sheet as CSV UTF-8"),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz"), "unpack it"),
}


def read_columns(
    path: Path, wanted: Sequence[str], options: DelimitedOptions | None = None
) -> Columns:
    """Read the wanted columns of a file; `options` matter if it is delimited text.

    Raises:
        DataError: the file is missing, in another format, not UTF-8, malformed or without rows, or
            a column is missing.
    """
    if path.is_dir():
        raise DataError("is a folder; name a file in it", path=path)
    suffix = path.suffix.lower()
    if suffix not in _KNOWN:
        remedy = _FOREIGN.get(suffix, f"known: {', '.join(_KNOWN)}")
        raise DataError(f"ends in {suffix or 'nothing'}; {remedy}", path=path)
    if not path.is_file():
        raise DataError(_missing(path), path=path)
    read: Callable[[Path, Sequence[str]], Columns]
    if suffix in SUFFIXES:
        read = partial(read_delimited, options=options or DelimitedOptions())
    else:
        read = read_json if suffix in _JSON else read_table
    columns = read(path, wanted)
    if columns.num_rows == 0:
        raise DataError("no rows; at least one is needed", path=path)
    for warning in columns.warnings:
        logger.warning("%s", warning)
    return columns


def is_delimited(path: Path) -> bool:
    """Return True for files of delimited text, by their names."""
    return path.suffix.lower() in SUFFIXES


def _missing(path: Path) -> str:
    """Return the problem with a path that is no file."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    if path.exists():
        return "no regular file; save the rows to a file first"
    others = [item.name for item in path.parent.glob("[!.]*") if item.suffix.lower() in _KNOWN]
    hint = did_you_mean(path.name, others)
    return f"no such file{hint and f'.{hint}'}"
