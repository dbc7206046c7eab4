"""A task made of the user's own CSV, JSONL or parquet files.

Reading is `training.columns`, what the columns mean is `training.own`.
"""

from __future__ import annotations

from pathlib import Path

from training.columns import read_columns
from training.own import OwnTask, own_data
from training.rows import TaskData


def load_files(train_file: Path, validation_file: Path | None, own: OwnTask) -> TaskData:
    """Load a task of the user's own from files.

    Args:
        train_file: .csv, .tsv, .jsonl, .ndjson or .parquet, UTF-8.
        validation_file: the same columns; None holds out a fifth of the train file's rows.
        own: which columns there are, and what they mean.

    Raises:
        DataError: the files can't be used; says which file, row and column.
    """
    train = read_columns(train_file, own.columns)
    validation = None if validation_file is None else read_columns(validation_file, own.columns)
    return own_data(own, train, validation, "files")
