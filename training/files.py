"""A task made of the user's own CSV, JSONL or parquet files.

    read columns -> infer or check labels -> rows -> hold out a validation split if no file is given

Reading is `training.columns`, labels are `training.labels`; the result is the same `TaskData` that
GLUE tasks give.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from deltas.manifest import NAME_PATTERN, TaskKind
from training.columns import Columns, read_columns
from training.errors import ConfigError, DataError
from training.labels import collect_labels, encode_labels, infer_kind
from training.rows import Rows, TaskData, digest_rows, hold_out
from training.tasks import TASKS, Task

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2
# Not the run's seed: runs with different seeds must be judged on the same rows.
_SPLIT_SEED = 0


def load_files(
    train_file: Path,
    validation_file: Path | None,
    text_columns: Sequence[str],
    label_column: str,
    name: str,
    kind: str | None = None,
) -> TaskData:
    """Load a task of the user's own.

    Args:
        train_file: .csv, .tsv, .jsonl, .ndjson or .parquet, UTF-8.
        validation_file: the same columns; None holds out a fifth of the train file's rows.
        text_columns: one or two.
        label_column: names, integers (their text becomes the label), numbers (regression), or
            several labels a row (a list; in CSV joined by "|").
        name: the task's name in deltas and URLs.
        kind: "single_label", "multi_label" or "regression"; None infers it from the train file.

    Raises:
        ConfigError: a bad name, kind or choice of columns.
        DataError: the files can't be used; says which file, row and column.
    """
    _check_options(text_columns, label_column, name, kind)
    wanted = [*text_columns, label_column]
    train_columns = read_columns(train_file, wanted)
    resolved = cast(TaskKind, kind) if kind else infer_kind(train_columns, label_column)
    labels = collect_labels(train_columns, label_column, resolved)
    logger.info("%s: %s, labels: %s", name, resolved, ", ".join(labels) or "numbers")
    task = Task(name, resolved, labels, tuple(text_columns), _metrics(resolved, len(labels)))
    train = _rows(task, train_columns, label_column)
    if validation_file is None:
        train, validation = hold_out(train, resolved, VALIDATION_SHARE, _SPLIT_SEED)
        if not len(validation):
            raise DataError(
                f"{len(train)} rows are too few to hold out validation rows; add rows, or give "
                "--validation-file",
                path=train_file,
            )
        note = f"{len(validation):,} rows held out of {train_file.name} (seed {_SPLIT_SEED})"
    else:
        validation = _rows(task, read_columns(validation_file, wanted), label_column)
        note = _overlap_note(train, validation)
    splits = {task.train_split: train, "validation": validation}
    return TaskData(
        task=task,
        source="files",
        note="",
        digest=digest_rows(splits),
        train=train,
        validation={"validation": validation},
        validation_notes={"validation": note} if note else {},
    )


def _check_options(
    text_columns: Sequence[str], label_column: str, name: str, kind: str | None
) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"--name {name[:128]!r}: 1 to 128 of a-z, 0-9, dot, dash and underscore are allowed, "
            "starting with a "
            "letter or digit"
        )
    if name in TASKS:
        raise ConfigError(
            f"--name {name!r} is a GLUE task; choose another, for example 'my-{name}'"
        )
    if len(text_columns) not in (1, 2) or "" in text_columns:
        raise ConfigError(
            f"--text-columns {','.join(text_columns)!r}: give one column, or two joined by a comma"
        )
    columns = [*text_columns, label_column]
    if len(set(columns)) != len(columns):
        raise ConfigError(
            f"the columns {', '.join(columns)} are not distinct; each may be used once"
        )
    if kind is not None and kind not in get_args(TaskKind):
        raise ConfigError(f"--kind {kind!r}: allowed are {', '.join(get_args(TaskKind))}")


def _metrics(kind: TaskKind, num_labels: int) -> tuple[str, ...]:
    if kind == "regression":
        return ("pearson", "spearman", "mse")
    if kind == "multi_label":
        return ("micro_f1", "macro_f1")
    return ("accuracy", "f1" if num_labels == 2 else "macro_f1")


def _rows(task: Task, columns: Columns, label_column: str) -> Rows:
    texts = list(zip(*(columns.values[field] for field in task.text_fields), strict=True))
    for field, column in zip(task.text_fields, zip(*texts, strict=True), strict=True):
        bad = [row for row, value in enumerate(column, 1) if not _is_text(value)]
        if bad:
            raise DataError(
                _text_problem(column[bad[0] - 1], bad, len(column)),
                path=columns.path,
                row=bad[0],
                column=field,
            )
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
    blank = value is None or (isinstance(value, str) and not value.strip())
    what = "no text" if blank else f"{value!r} is not a text"
    more = f" ({len(bad) - 1:,} more such rows follow)" if len(bad) > 1 else ""
    return f"{what}{more}; fill it in or drop the row"


def _overlap_note(train: Rows, validation: Rows) -> str:
    seen = set(train.texts)
    shared = sum(texts in seen for texts in validation.texts)
    if not shared:
        return ""
    note = f"{shared:,} of {len(validation):,} validation rows are in the train file too"
    logger.warning("%s; metrics on them measure memory", note)
    return note
