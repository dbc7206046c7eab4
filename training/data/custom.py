"""Makes a custom task: one that users define by their own rows.

Columns of files (`training.data.files`) or of a data set (`training.data.hub_dataset`) become the
same `TaskData` as that of a GLUE task: labels are interpreted (`training.data.labels`), texts are
checked, and validation rows are held out if there are none.
"""

from __future__ import annotations

import csv
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from training.data.files.columns import Columns
from training.data.files.delimited import DelimitedOptions
from training.data.files.reader import is_delimited, read_columns
from training.data.files.spelling import clean
from training.data.labels.forms import LabelForm, infer_form
from training.data.labels.label_column import (
    collect_labels,
    encode_labels,
    join_label_columns,
    name_classes,
)
from training.data.rows import Rows, TaskData, digest_rows, hold_out
from training.data.tasks import TASKS, Task
from training.data.texts import with_texts
from training.errors import ConfigError, DataError, counted

if TYPE_CHECKING:
    from deltas.manifest import TaskKind

logger = logging.getLogger(__name__)

_VALIDATION_FRACTION = 0.2
# Not the run's seed: runs with different seeds must be evaluated on the same rows.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class CustomTask:
    """The user's description of a custom task.

    The label column holds names, integers (their text becomes the label), numbers (regression), or
    several labels a row (a list; in CSV joined by "|"). Several label columns, joined by commas,
    hold 0 and 1, and their names are the labels.

    Raises:
        ConfigError: a bad name, kind or choice of columns.
    """

    text_columns: tuple[str, ...]  # one or two
    label_column: str
    name: str  # in deltas and URLs
    kind: str | None = None  # None infers it from the train rows

    def __post_init__(self) -> None:
        from deltas.manifest import NAME_PATTERN, TaskKind

        name, texts, kinds = self.name, self.text_columns, get_args(TaskKind)
        labels = self.label_columns
        if not re.fullmatch(NAME_PATTERN, name):
            problem = (
                f"--name {name[:128]!r}: 1 to 128 of a-z, 0-9, dot, dash and underscore are "
                "allowed, starting with a letter or digit"
            )
        elif name in TASKS:
            problem = f"--name {name!r} is a GLUE task; choose another, for example 'my-{name}'"
        elif len(texts) not in (1, 2) or "" in texts:
            given = ",".join(texts)
            problem = f"--text-columns {given!r}: give one column, or two joined by a comma"
        elif "" in labels:
            problem = f"--label-column {self.label_column!r}: a column without a name"
        elif len(set(self.columns)) != len(self.columns):
            given = ", ".join(self.columns)
            problem = f"the columns {given} are not distinct; each may be used once"
        elif self.kind is not None and self.kind not in kinds:
            problem = f"--kind {self.kind!r}: allowed are {', '.join(kinds)}"
        else:
            return
        raise ConfigError(problem)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read: texts first, then the label."""
        return (*self.text_columns, *self.label_columns)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label column, or the columns with a label each."""
        return split_names(self.label_column)

    @property
    def label(self) -> str:
        """The name of the labels' column, once several are joined to one."""
        names = self.label_columns
        return names[0] if len(names) == 1 else self.label_column


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas; a name that contains a comma stands in double quotes.

    Raises:
        ConfigError: a quote is not closed.
    """
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise ConfigError(
            f"{text!r}: a double quote that is not closed, or a line break"
        ) from error
    return tuple(name.strip() for name in names) or ("",)


def load_files(
    train_file: Path,
    validation_file: Path | None,
    custom: CustomTask,
    options: DelimitedOptions | None = None,
) -> TaskData:
    """Load a custom task from files; without a validation file, a fifth of the rows is held out.

    Raises:
        ConfigError: options of delimited text, but no file of it.
        DataError: the files can't be used; names the file, row and column.
    """
    files = [train_file] if validation_file is None else [train_file, validation_file]
    if options not in (None, DelimitedOptions()) and not any(map(is_delimited, files)):
        raise ConfigError(
            f"{train_file}: --delimiter and --quoting are for delimited text, such as CSV"
        )
    train, *more = (read_columns(file, custom.columns, options) for file in files)
    return custom_data(custom, train, more[0] if more else None, "files")


def custom_data(
    custom: CustomTask, train: Columns, validation: Columns | None, source: str
) -> TaskData:
    """Turn columns into a task and its rows; `source` is that of `TaskData`.

    Raises:
        DataError: the rows can't be used; names the file or split, row and column.
    """
    doubts: list[str] = []

    def warn(sentence: str) -> None:
        logger.warning("%s", sentence)
        doubts.append(sentence)

    label = custom.label
    parts = [part for part in (train, validation) if part is not None]
    # Rows that are left out have no say in the labels.
    read = [_with_labels(with_texts(part, custom.text_columns, warn), custom) for part in parts]
    form = infer_form(read[0], label, cast("TaskKind | None", custom.kind), warn)
    labels = collect_labels(read[0], label, form, warn)
    logger.info("%s: %s, labels: %s", custom.name, form.kind, ", ".join(labels) or "numbers")
    metrics = _metrics(form.kind, len(labels))
    task = Task(custom.name, form.kind, labels, tuple(map(clean, custom.text_columns)), metrics)
    train_rows, *more = (_rows(task, part, custom, form) for part in read)
    if more:
        validation_rows = more[0]
        note = _overlap_note(train_rows, validation_rows, train.noun)
    else:
        train_rows, validation_rows, note = _held_out(train_rows, form.kind, train)
    notes = [line for part in read for line in part.reading_notes]
    notes += [f"{train.name}, column {label!r}: {form.note}"] if form.note else []
    return TaskData(
        task=task,
        source=source,
        note="",
        digest=digest_rows({task.train_split: train_rows, "validation": validation_rows}),
        train=train_rows,
        validation={"validation": validation_rows},
        validation_notes={"validation": note} if note else {},
        reading_notes=tuple(notes),
        warnings=(*(line for part in read for line in part.warnings), *doubts),
    )


def _with_labels(columns: Columns, custom: CustomTask) -> Columns:
    """Return the columns with names for codes of class labels, and one column of labels."""
    if len(custom.label_columns) > 1:
        return join_label_columns(columns, custom.label_columns, custom.label)
    return name_classes(columns, custom.label)


def _held_out(rows: Rows, kind: TaskKind, columns: Columns) -> tuple[Rows, Rows, str]:
    """Return train rows, validation rows, and a note on the latter."""
    train, validation = hold_out(rows, kind, _VALIDATION_FRACTION, _SPLIT_SEED)
    if not len(validation):
        texts = counted(len(set(rows.texts)), "distinct text")
        raise DataError(
            f"{counted(len(train), 'row')} with {texts} are too few to hold out validation rows; "
            f"add rows, or give --validation-{columns.noun}",
            path=columns.path,
        )
    note = f"{counted(len(validation), 'row')} held out of {columns.name} (seed {_SPLIT_SEED})"
    return train, validation, note


def _metrics(kind: TaskKind, num_labels: int) -> tuple[str, ...]:
    if kind == "regression":
        return ("pearson", "spearman", "mse")
    if kind == "multi_label":
        return ("micro_f1", "macro_f1")
    return ("accuracy", "f1" if num_labels == 2 else "macro_f1")


def _rows(task: Task, columns: Columns, custom: CustomTask, form: LabelForm) -> Rows:
    texts = list(zip(*(columns.values[field] for field in custom.text_columns), strict=True))
    labels = encode_labels(columns, custom.label, form, task.labels)
    return Rows(texts, labels, list(columns.numbers))


def _overlap_note(train: Rows, validation: Rows, noun: str) -> str:
    seen = set(train.texts)
    shared = sum(texts in seen for texts in validation.texts)
    if not shared:
        return ""
    note = f"{shared:,} of {len(validation):,} validation rows are in the train {noun} too"
    logger.warning("%s; metrics on them measure memory", note)
    return note
