"""Makes a custom task: one that users define by their own rows.

Columns of files (`training.data.columns`) or of a data set (`training.data.hub_dataset`) become the
same `TaskData` as that of a GLUE task: labels are interpreted (`training.data.labels`), texts are
checked, and validation rows are held out if there are none.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from training.data.columns import Columns, read_columns
from training.data.labels import collect_labels, encode_labels, infer_kind, is_blank
from training.data.rows import Rows, TaskData, digest_rows, hold_out
from training.data.tasks import TASKS, Task
from training.errors import ConfigError, DataError

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
    several labels a row (a list; in CSV joined by "|").

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
        return (*self.text_columns, self.label_column)


def load_files(train_file: Path, validation_file: Path | None, custom: CustomTask) -> TaskData:
    """Load a custom task from files; without a validation file, a fifth of the rows is held out.

    Raises:
        DataError: the files can't be used; names the file, row and column.
    """
    train = read_columns(train_file, custom.columns)
    validation = None if validation_file is None else read_columns(validation_file, custom.columns)
    return custom_data(custom, train, validation, "files")


def custom_data(
    custom: CustomTask, train: Columns, validation: Columns | None, source: str
) -> TaskData:
    """Turn columns into a task and its rows; `source` is that of `TaskData`.

    Raises:
        DataError: the rows can't be used; names the file or split, row and column.
    """
    kind = cast("TaskKind", custom.kind) if custom.kind else infer_kind(train, custom.label_column)
    labels = collect_labels(train, custom.label_column, kind)
    logger.info("%s: %s, labels: %s", custom.name, kind, ", ".join(labels) or "numbers")
    task = Task(custom.name, kind, labels, custom.text_columns, _metrics(kind, len(labels)))
    read = [train] if validation is None else [train, validation]
    train_rows = _rows(task, train, custom.label_column)
    if validation is None:
        train_rows, validation_rows, note = _held_out(train_rows, kind, train)
    else:
        validation_rows = _rows(task, validation, custom.label_column)
        note = _overlap_note(train_rows, validation_rows, train.noun)
    return TaskData(
        task=task,
        source=source,
        note="",
        digest=digest_rows({task.train_split: train_rows, "validation": validation_rows}),
        train=train_rows,
        validation={"validation": validation_rows},
        validation_notes={"validation": note} if note else {},
        reading_notes=tuple(line for part in read for line in part.reading_notes),
        warnings=tuple(line for part in read for line in part.warnings),
    )


def _held_out(rows: Rows, kind: TaskKind, columns: Columns) -> tuple[Rows, Rows, str]:
    """Return train rows, validation rows, and a note on the latter."""
    train, validation = hold_out(rows, kind, _VALIDATION_FRACTION, _SPLIT_SEED)
    if not len(validation):
        raise DataError(
            f"{len(train)} rows are too few to hold out validation rows; add rows, or give "
            f"--validation-{columns.noun}",
            path=columns.path,
        )
    note = f"{len(validation):,} rows held out of {columns.name} (seed {_SPLIT_SEED})"
    return train, validation, note


def _metrics(kind: TaskKind, num_labels: int) -> tuple[str, ...]:
    if kind == "regression":
        return ("pearson", "spearman", "mse")
    if kind == "multi_label":
        return ("micro_f1", "macro_f1")
    return ("accuracy", "f1" if num_labels == 2 else "macro_f1")


def _rows(task: Task, columns: Columns, label_column: str) -> Rows:
    for field in task.text_fields:
        values = columns.values[field]
        bad = [row for row, value in enumerate(values, 1) if not _is_text(value)]
        if bad:
            problem = _text_problem(values[bad[0] - 1], bad, len(values))
            raise DataError(problem, path=columns.path, row=bad[0], column=field)
    texts = list(zip(*(columns.values[field] for field in task.text_fields), strict=True))
    return Rows(texts, encode_labels(columns, label_column, task.kind, task.labels))


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which tokenizers refuse
        return False
    return True


def _text_problem(value: object, bad: list[int], num_rows: int) -> str:
    if len(bad) == num_rows:
        return "no row has a text here; is this the right column?"
    found = "no text" if is_blank(value) else f"{value!r:.100} is not a text"
    more = f" ({len(bad) - 1:,} more such rows follow)" if len(bad) > 1 else ""
    return f"{found}{more}; fill it in or drop the row"


def _overlap_note(train: Rows, validation: Rows, noun: str) -> str:
    seen = set(train.texts)
    shared = sum(texts in seen for texts in validation.texts)
    if not shared:
        return ""
    note = f"{shared:,} of {len(validation):,} validation rows are in the train {noun} too"
    logger.warning("%s; metrics on them measure memory", note)
    return note
