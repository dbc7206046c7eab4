"""Reads columns of JSON Lines, and of a JSON array of objects.

Both occur under the same names: `.json` is JSON Lines for some programs, an array for others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deltas.errors import did_you_mean
from training.data.files.columns import Columns
from training.data.files.content import open_text
from training.data.files.spelling import clean_name
from training.errors import DataError, counted, listing

_EXAMPLE = '{"text": "...", "label": "..."}'

_AS_LINES = "In pandas: to_json(path, orient='records', lines=True)"


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys occurred more than once."""

    repeated: frozenset[str] = frozenset()


def read_json(path: Path, wanted: Sequence[str]) -> Columns:
    """Read the wanted columns; values keep their types.

    Raises:
        DataError: a line is not JSON or not an object, or a row lacks a wanted column.
    """
    values: dict[str, list[Any]] = {column: [] for column in wanted}
    num_rows = 0
    for num_rows, (where, item) in enumerate(_items(path), start=1):
        if not isinstance(item, _Object):
            problem = f"{where} holds {item!r:.40}; each row must be one object like {_EXAMPLE}"
            raise DataError(problem, path=path, row=num_rows)
        for column in wanted:
            values[column].append(_value(path, num_rows, item, column))
    if num_rows == 1 and all(isinstance(found[0], dict | list) for found in values.values()):
        raise DataError(
            f"one object with whole columns; each row must be an object like {_EXAMPLE}. "
            f"{_AS_LINES}",
            path=path,
        )
    return Columns(
        path, num_rows, values, reading_notes=(f"{path.name}: {counted(num_rows, 'row')}",)
    )


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row's item, and its place for messages.

    Raises:
        DataError: a line, or the array, is not JSON.
    """
    with open_text(path) as lines:
        filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for row, (number, line) in enumerate(filled, start=1):
            item, problem = _parse(line)
            if row == 1 and (problem or isinstance(item, list)):
                rest = lines.read()
                if problem or not rest.strip():
                    yield from _whole(path, line + rest, number, problem)
                    return
                # A whole array on the first line of several is a row.
            if problem:
                problem = f"line {number} is not JSON ({problem}); each line must hold one object"
                raise DataError(f"{problem} like {_EXAMPLE}", path=path, row=row)
            yield f"line {number}", item


def _whole(path: Path, text: str, line: int, problem: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a file that is one array, perhaps over several lines.

    `problem` is the one with the first line that isn't blank, by itself.
    """
    found, whole_problem = _parse(text)
    if isinstance(found, list):
        yield from ((f"item {number} of the array", item) for number, item in enumerate(found, 1))
    elif whole_problem and not text.lstrip().startswith("["):
        problem = f"line {line} is not JSON ({problem}); each line must hold one object"
        raise DataError(f"{problem} like {_EXAMPLE}", path=path, row=1)
    elif whole_problem:
        problem = f"an array that is not JSON ({whole_problem}); it must hold one object a row"
        raise DataError(problem, path=path)
    else:
        yield "the file", found


def _parse(text: str) -> tuple[Any, str]:
    """Return the value of a JSON text, and what is wrong with it, or ""."""
    try:
        # Files that were joined may have a byte order mark at any line.
        return json.loads(text.strip().removeprefix("\ufeff"), object_pairs_hook=_make_object), ""
    except json.JSONDecodeError as error:
        at_line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return None, f"{error.msg} at {at_line}character {error.colno}"
    except (ValueError, RecursionError):
        return None, "nested too deeply, or a number with too many digits"


def _value(path: Path, row: int, item: _Object, column: str) -> Any:
    """Return the value of a wanted column in a row."""
    keys = [column]
    if column not in item:
        keys = [key for key in item if clean_name(key) == clean_name(column)]
    if len(keys) == 1 and keys[0] not in item.repeated:
        return item[keys[0]]
    if keys:
        problem = "occurs more than once in this row; keep one"
        raise DataError(problem, path=path, row=row, column=column)
    hint = _inner_hint(item, column) or did_you_mean(column, item)
    problem = f"missing; the row has {listing(item)}.{hint}"
    raise DataError(problem, path=path, row=row, column=column)


def _inner_hint(item: _Object, column: str) -> str:
    """Return a hint if a value of a row contains the rows, or the wanted column."""
    rows = list(item.values())
    is_index = len(rows) > 1 and all(isinstance(row, dict) and column in row for row in rows)
    if is_index or {"columns", "data"} <= item.keys():
        return f" This is one object with all rows. {_AS_LINES}"
    for key, value in item.items():
        if _is_table(value):
            return f" Its {key!r} is a list of objects: write that list alone"
        inner = column.removeprefix(f"{key}.")
        if isinstance(value, dict) and inner in value:
            return f" {inner!r} is inside of {key!r}: write it beside the other keys"
    return ""


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _make_object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        made.repeated = frozenset(key for key in made if keys.count(key) > 1)
    return made
