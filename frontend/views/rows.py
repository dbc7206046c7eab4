"""Rows of a pasted or uploaded table: read, labelled, compared, and written to files.

Spreadsheets get CSV, in which an apostrophe makes a formula a text. Training gets JSON Lines, which
keep texts, lists of labels and numbers exactly. Nothing is drawn here; `frontend.views.table` does.
Every problem of a table is one sentence.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TypeAlias

import pandas as pd

from frontend.models import Prediction, TaskInfo

Label: TypeAlias = str | list[str] | float  # by kind of task: single-label, multi-label, regression

MAX_ROWS = 20_000
MAX_MEGABYTES = 20
CHUNK_ROWS = 64  # of one request, counted once for each strategy: a step of the progress bar
_FOR_MORE = "For more, send the file to the server: docs/guide/bulk.md says how."
_DELIMITERS = ",;\t|"
_SNIFFED_CHARS = 65_536
TRAINING_FILE = "labelled.jsonl"
_MAX_NAME, _CORRECTED = 128, "-corrected"  # characters of a task's name, and its ending
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class TableError(Exception):
    """A table that can't be used; the message is a sentence for the one who gave it."""


@dataclass(frozen=True)
class Labelled:
    """The answers of one strategy to the rows; None for rows that could not be answered."""

    strategy: str
    predictions: tuple[Prediction | None, ...]

    @property
    def labels(self) -> list[str]:
        """The decision of each row as text; empty without an answer."""
        return ["" if item is None else decision(item) for item in self.predictions]

    @property
    def answers(self) -> list[Label | None]:
        """The decision of each row in its kind's own type; None without one."""
        return [None if item is None else _answer(item) for item in self.predictions]

    @property
    def doubts(self) -> list[float | None]:
        """The doubt about each answer, 0 for a certain one; None for values and without one."""
        return [None if item is None else _doubt(item) for item in self.predictions]


def read_table(data: bytes) -> pd.DataFrame:
    """Read a table of texts with a header.

    Raises:
        TableError: the bytes are no such table.
    """
    if len(data) > MAX_MEGABYTES * 1_000_000:
        raise TableError(
            f"The table has {len(data) / 1e6:,.0f} MB; this page takes {MAX_MEGABYTES}. {_FOR_MORE}"
        )
    text = _decoded(data)
    reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text), strict=True)
    try:
        filled = ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))
        lines = list(islice(filled, MAX_ROWS + 2))
    except csv.Error as error:
        raise TableError(
            f"Line {reader.line_num} is not valid CSV ({error}). "
            "Often a quote was opened and not closed."
        ) from error
    if not lines:
        raise TableError("The table is empty. Give a header line and at least one row.")
    header = [name.strip() for name in lines[0][1]]
    _check_header(header)
    if len(lines) == 1:
        raise TableError(f"The table has a header ({', '.join(header)[:80]}), but no row below it.")
    if len(lines) - 1 > MAX_ROWS:
        raise TableError(
            f"The table has more rows than the {MAX_ROWS:,} that this page takes. {_FOR_MORE}"
        )
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise TableError(
                f"Line {number} has {len(cells)} cells, the header has {len(header)}. A text that "
                "contains the separator needs double quotes around it."
            )
    return pd.DataFrame([cells for _, cells in lines[1:]], columns=header, dtype="string")


def _decoded(data: bytes) -> str:
    if b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError("The file is not a text file. Save the table as CSV and choose it again.")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise TableError(
            f"The file is not in UTF-8 (byte {error.start:,}). Save it as CSV UTF-8 and try again."
        ) from error


def _delimiter(text: str) -> str:
    """Return the separator that the header has most often outside quotes; a comma without any."""
    header = re.sub('"[^"]*"', "", text.lstrip().partition("\n")[0][:_SNIFFED_CHARS])
    return max(_DELIMITERS, key=header.count)


def _check_header(header: Sequence[str]) -> None:
    if "" in header:
        place = header.index("") + 1
        raise TableError(f"Column {place} has no name. Give every column a name in the first line.")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise TableError(f"Two columns are called “{twice[0]}”. Rename one of them.")


def text_column(table: pd.DataFrame) -> str:
    """Return the column that most likely holds the texts: the one with most words."""

    def num_words(name: str) -> int:
        return sum(len(str(cell).split()) for cell in table[name])

    return max(map(str, table.columns), key=num_words)


def label_column(table: pd.DataFrame, labels: Sequence[str]) -> str | None:
    """Return the column whose cells are all labels of the task; None if there is none."""
    known = set(labels)
    found = (str(name) for name in table.columns if set(table[name].str.strip()) <= known)
    return next(found, None) if known else None


def free_name(name: str, taken: Iterable[str]) -> str:
    """Return the name of a new column: with a number if the table has such a column already."""
    names = set(taken)
    numbered = (f"{name} {number}" for number in count(2))
    return name if name not in names else next(each for each in numbered if each not in names)


def chunks(num_rows: int, num_strategies: int) -> Iterator[range]:
    """Yield the places of the rows of each request, which asks all strategies."""
    size = max(1, CHUNK_ROWS // num_strategies)
    for start in range(0, num_rows, size):
        yield range(start, min(start + size, num_rows))


def decision(item: Prediction) -> str:
    """Return an answer as the text of a cell."""
    return cell_text(_answer(item))


def cell_text(label: Label | None) -> str:
    """Return a label as the text of a cell; empty without one."""
    if label is None:
        return ""
    if isinstance(label, float):
        return f"{label:.15g}"
    return label if isinstance(label, str) else ", ".join(label)


def _answer(item: Prediction) -> Label | None:
    if item.value is not None:
        return float(f"{item.value:.4g}")  # as the page shows it
    if item.kind == "multi_label":
        return list(item.labels)
    return item.labels[0] if item.is_answered else None


def _doubt(item: Prediction) -> float | None:
    """Return 1 minus the probability of the decision, which for many labels is its least sure."""
    if not item.scores:
        return None
    if item.kind == "multi_label":
        return max(min(score, 1 - score) for score in item.scores.values())
    return 1 - max(item.scores.values())


def accuracy(labels: Sequence[str], gold: Sequence[str]) -> float:
    """Return the share of rows whose label is the gold one."""
    right = sum(one == other for one, other in zip(labels, gold, strict=True))
    return right / len(gold) if gold else 0.0


def confusion(labels: Sequence[str], gold: Sequence[str]) -> pd.DataFrame:
    """Return the number of rows by gold label (rows) and given label (columns)."""
    names = sorted({*labels, *gold})
    counts = Counter(zip(gold, labels, strict=True))
    return pd.DataFrame(
        [[counts[one, other] for other in names] for one in names],
        index=pd.Index(names, name="gold"),
        columns=names,
    )


def mistakes(labels: Sequence[str], gold: Sequence[str]) -> pd.DataFrame:
    """Return the mistakes, the most frequent first: number of rows, gold label, given label."""
    counts = Counter(pair for pair in zip(gold, labels, strict=True) if pair[0] != pair[1])
    found = [(number, *pair) for pair, number in counts.most_common()]
    return pd.DataFrame(found, columns=["rows", "gold", "given"])


def right_and_wrong(one: Sequence[str], other: Sequence[str], gold: Sequence[str]) -> list[int]:
    """Return the places of the rows that the first labels get right and the second wrong."""
    return [
        place
        for place, (a, b, wanted) in enumerate(zip(one, other, gold, strict=True))
        if a == wanted != b
    ]


def spreadsheet_csv(table: pd.DataFrame) -> str:
    """Return a table as CSV that no spreadsheet takes for formulas: an apostrophe marks a text."""

    def safe(cell: object) -> object:
        is_formula = isinstance(cell, str) and cell.startswith(_FORMULA_STARTS)
        return f"'{cell}" if is_formula else cell

    shown = table.astype(object).map(safe).rename(columns=safe)
    return str(shown.to_csv(index=False, lineterminator="\r\n"))


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on, exactly as they were given.

    Attributes:
        task: the task that the rows were labelled for.
        columns: names of the columns with texts, and of the one with labels at the end.
        texts: the texts of each row, in the order of the task's fields.
        labels: the label of each row; rows without one (None) are left out.
    """

    task: TaskInfo
    columns: Sequence[str]
    texts: Sequence[Sequence[str]]
    labels: Sequence[Label | None]

    @property
    def num_rows(self) -> int:
        """The number of rows that have a label."""
        return sum(label is not None for label in self.labels)

    @property
    def json_lines(self) -> str:
        """One JSON object a row."""
        names = self._names
        rows = (
            dict(zip(names, (*texts, label), strict=True))
            for texts, label in zip(self.texts, self.labels, strict=True)
            if label is not None
        )
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    @property
    def command(self) -> str:
        """The command that trains a delta on the file."""
        *texts, label = map(_argument, self._names)
        name = self.task.name[: _MAX_NAME - len(_CORRECTED)] + _CORRECTED
        parts = ["python", "-m", "training.fit", "--train-file", TRAINING_FILE]
        parts += ["--text-columns", ",".join(texts), "--label-column", label]
        return shlex.join([*parts, "--name", name, "--kind", self.task.kind])

    @property
    def _names(self) -> list[str]:
        """The names of the columns without line breaks, which no option takes, each once."""
        names: list[str] = []
        for name in self.columns:
            names.append(free_name(" ".join(name.split()), names))
        return names


def given_label(kind: str, cell: object, answer: Label | None = None) -> Label | None:
    """Return the label in a cell of the editor; None for a cell without one.

    The editor tells an emptied list as a missing one. If the cell had an `answer`, none of the
    labels applies.
    """
    if kind == "regression":
        number = float(cell) if isinstance(cell, int | float) else math.nan
        return number if math.isfinite(number) else None
    if kind == "multi_label":
        if isinstance(cell, str) or not isinstance(cell, Iterable):
            return None if answer is None else []
        return list(map(str, cell))
    return cell if isinstance(cell, str) and cell else None


def _argument(name: str) -> str:
    """Return the name of a column as options take it: in quotes unless it is plain."""
    quoted = '"' + name.replace('"', '""') + '"'
    return name if re.fullmatch(r'\w[^",]*', name) else quoted
