"""Loads the rows of a GLUE task: from a folder, from the Hugging Face hub, or generated.

The hub's files are kept in its local cache, and read as a folder from there. Everything is checked
before anything is used: a wrong label or a missing text is an error that names the file, row and
column. Rows in memory are `training.data.rows`, generated rows come from `training.data.sample`;
data sets other than GLUE are read by `training.data.hub_dataset`.
"""

from __future__ import annotations

import logging
import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deltas.errors import did_you_mean
from training.data.files.columns import Columns
from training.data.files.reader import read_columns
from training.data.rows import Rows, TaskData, digest_rows
from training.data.sample import sample_splits
from training.data.tasks import find_task
from training.errors import DataError, listing

if TYPE_CHECKING:
    from training.data.tasks import Task

logger = logging.getLogger(__name__)

REPOSITORY = "nyu-mll/glue"
_ETAG_TIMEOUT_S = 4.0
_NO_GLUE = "generated sample, not GLUE: metrics on it say nothing about the GLUE task"


class HubUnreachableError(DataError):
    """The hub can't be reached, and its cache has no copy of the data set."""


def load_task(name: str, data: str | None = None) -> TaskData:
    """Load one GLUE task.

    Args:
        name: a key of `training.data.tasks.TASKS`.
        data: "hub", "sample", or a folder with `<task>/<split>.parquet`. None takes the folder in
            $GLUE_DIR if that is set, else the hub, else (no hub, no cached copy) the sample, with a
            warning.

    Raises:
        TaskError: no such task.
        DataError: the rows are missing or wrong; names the file, row and column, and the remedy.
    """
    task = find_task(name)
    if data is None and (folder := os.environ.get("GLUE_DIR")):
        return _load_folder(task, Path(folder), named_by="GLUE_DIR")
    if data == "sample":
        return _load_sample(task)
    if data is not None and data != "hub":
        return _load_folder(task, Path(data), named_by="--data")
    try:
        return _assemble(task, "hub", _hub_folder(task))
    except HubUnreachableError as error:
        if data == "hub":
            raise
        warning = "NOT REAL DATA: training %s on the built-in sample, because %s"
        logger.warning(warning, task.name, error)
        return _load_sample(task)


def why_no_hub(repository: str, revision: str = "main") -> str:
    """Return the reason why a data set can't be fetched now, or ""; takes five seconds at most."""
    from huggingface_hub import constants

    from deltas.backbone.hub import why_unreachable

    datasets_offline = os.environ.get("HF_DATASETS_OFFLINE", "").upper()
    if constants.is_offline_mode() or datasets_offline in constants.ENV_VARS_TRUE_VALUES:
        return "offline mode is on (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
    return why_unreachable(f"datasets/{repository}/resolve/{quote(revision, safe='')}/README.md")


def _hub_folder(task: Task) -> Path:
    """Return a folder with the hub's files of a task.

    A complete copy in the cache is used without asking the hub, so that runs stay the same and work
    offline.

    Raises:
        HubUnreachableError: the hub doesn't answer, or offline mode is on, and nothing is cached.
        DataError: the hub answered, but the files could not be fetched.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    fetch = partial(
        snapshot_download,
        REPOSITORY,
        repo_type="dataset",
        allow_patterns=f"{task.name}/*.parquet",
        etag_timeout=_ETAG_TIMEOUT_S,
    )
    try:
        return _checked(task, Path(fetch(local_files_only=True)))
    except (OSError, ValueError) as error:  # not there, or incomplete
        logger.debug("no cached copy of %s (%s): %s", REPOSITORY, task.name, error)
    if reason := why_no_hub(REPOSITORY):
        raise HubUnreachableError(
            f"the Hugging Face hub can't be used: {reason}. No copy of {REPOSITORY} is cached. "
            "Give a folder with --data DIR or $GLUE_DIR, use --data sample for generated rows, or "
            "set HF_ENDPOINT to a mirror"
        )
    # The root error of the hub library's HTTP client (httpx, later httpx2).
    client_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    try:
        return _checked(task, Path(fetch()))
    except (OSError, ValueError, client_error) as error:
        raise DataError(
            f"{REPOSITORY} ({task.name}) at {constants.ENDPOINT} could not be read: {error}. Try "
            "again, or give a folder with --data DIR"
        ) from error


def _checked(task: Task, folder: Path) -> Path:
    for split in task.splits:
        if not split_files(folder / task.name, f"{split}.parquet"):
            raise FileNotFoundError(f"no {task.name}/{split}-*.parquet")
    return folder


def _load_sample(task: Task) -> TaskData:
    splits = sample_splits(task)
    return TaskData(
        task=task,
        source="sample",
        note=_NO_GLUE,
        digest=digest_rows(splits),
        train=splits.pop(task.train_split),
        validation=splits,
        validation_notes=dict.fromkeys(splits, _NO_GLUE),
    )


def _load_folder(task: Task, folder: Path, named_by: str) -> TaskData:
    if not folder.is_dir():
        others = "" if named_by == "GLUE_DIR" else ", or hub, or sample"
        raise DataError(
            f"no such folder.{did_you_mean(str(folder), ('hub', 'sample'))} {named_by} takes a "
            f"folder with {task.name}/{task.train_split}.parquet{others}",
            path=folder,
        )
    return _assemble(task, "folder", folder)


def _assemble(task: Task, source: str, folder: Path) -> TaskData:
    splits = {split: _read_split(task, folder / task.name, split) for split in task.splits}
    notes = {split: _size_note(task, split, len(rows)) for split, rows in splits.items()}
    return TaskData(
        task=task,
        source=source,
        note=notes[task.train_split],
        digest=digest_rows(splits),
        train=splits[task.train_split],
        validation={split: splits[split] for split in task.validation_splits},
        validation_notes={split: notes[split] for split in task.validation_splits if notes[split]},
    )


def _size_note(task: Task, split: str, rows: int) -> str:
    """Return a note on a split that has another size than the published one, else ""."""
    canonical = task.canonical_rows[split]
    if rows == canonical:
        return ""
    if rows > canonical:
        return f"not the GLUE {split} set: {rows:,} rows instead of {canonical:,}"
    return f"sample of the GLUE {split} set: {rows:,} of {canonical:,} rows"


def split_files(folder: Path, name: str) -> list[Path]:
    """Return the file of that name, or its parts, which are numbered: `train-00000-of-00002`."""
    path = folder / name
    parts = f"{path.stem}-[0-9]*-of-[0-9]*{path.suffix}"
    return [path] if path.is_file() else sorted(folder.glob(parts))


def _read_split(task: Task, folder: Path, split: str) -> Rows:
    paths = split_files(folder, f"{split}.parquet")
    if not paths:
        needed = ", ".join(f"{name}.parquet" for name in task.splits)
        found = listing(sorted(item.name for item in folder.glob("*.parquet")))
        problem = f"no such file; {task.name} needs {needed}; this folder has {found}"
        raise DataError(problem, path=folder / f"{split}.parquet")
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    for path in paths:
        columns = read_columns(path, (*task.text_fields, "label"))
        _check_label_names(task, columns)
        for column, values in columns.values.items():
            for row, value in enumerate(values, start=1):
                if problem := _problem(task, column, value):
                    raise DataError(problem, path=path, row=row, column=column)
        texts += zip(*(columns.values[field] for field in task.text_fields), strict=True)
        labels += columns.values["label"]
    return Rows(texts, labels)


def _check_label_names(task: Task, columns: Columns) -> None:
    names = columns.class_names.get("label")
    if names and names != task.labels:
        problem = (
            f"the file says that its labels are {', '.join(names)}, but {task.name} has "
            f"{', '.join(task.labels)} in this order; answers would be permuted"
        )
        raise columns.error("label", problem)


def _problem(task: Task, column: str, value: Any) -> str:
    """Return the problem with a text or label, or ""."""
    if column == "label":
        return _label_problem(task, value)
    if isinstance(value, str):
        return ""
    shown = "null" if value is None else f"{value!r} ({type(value).__name__})"
    return f"{shown} where a text is needed; mend or drop the row"


def _label_problem(task: Task, value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value == -1:
        return "-1 means unlabelled (GLUE's test sets are); train and validation rows need labels"
    if task.kind == "regression":
        low, high = task.value_range or (-math.inf, math.inf)
        if number and math.isfinite(value) and low <= value <= high:
            return ""
        return f"{value!r} is not allowed; a number from {low:g} to {high:g} is needed"
    if number and isinstance(value, int) and 0 <= value < len(task.labels):
        return ""
    codes = ", ".join(f"{code} ({label})" for code, label in enumerate(task.labels))
    return f"{value!r} is not a label of {task.name}; allowed: {codes}"
