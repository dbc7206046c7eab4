"""Where the rows of a GLUE task come from: a folder, the hub, or the generated sample.

Everything is checked before anything is used: a wrong label or a missing text is an error that
names file, row and column. Rows of the user's own: `training.data.custom`. What rows are:
`training.data.rows`. Talking to the hub: `training.data.glue`.

Tables of a GLUE task from the Hugging Face hub (`nyu-mll/glue`), or from its local cache.

A hub that can't be reached is noticed within five seconds: left alone, `datasets` retries for half
a minute. `training.data.glue` checks the tables and turns them into rows. Other data sets:
`training.data.hub_dataset`.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deltas.backbone.hub import why_unreachable
from training.data.tasks import Task
from training.errors import DataError

if (
    TYPE_CHECKING
):  # `datasets` takes seconds to import; only a run that reads from the hub pays for it.
    import datasets
    import pyarrow as pa
import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from deltas.errors import did_you_mean
from training.data.rows import Labels, Rows, TaskData, digest_rows
from training.data.sample import sample_splits
from training.data.tasks import find_task
from training.errors import listing

logger = logging.getLogger(__name__)

REPOSITORY = "nyu-mll/glue"


class HubUnreachableError(DataError):
    """Neither the hub nor a cached copy is there; `training.data.glue` may fall back to the sample."""


def fetch_tables(task: Task) -> dict[str, pa.Table]:
    """Train and validation tables of a task, by split.

    A complete copy in the cache of `datasets` is used without asking the hub, so that runs stay the
    same and work offline.

    Raises:
        HubUnreachableError: the hub doesn't answer, or offline mode is on, and nothing is cached.
        DataError: the hub answered but the data set could not be read, or its labels aren't the
            task's.
    """
    splits = _from_cache(task) or _from_hub(task)
    for split, dataset in splits.items():
        _check_labels(task, split, getattr(dataset.features.get("label"), "names", None))
    return {split: dataset.with_format("arrow")[:] for split, dataset in splits.items()}


def why_no_hub(repository: str, revision: str = "main") -> str:
    """What keeps us from a data set's repository, or "" when the hub answers; in five seconds."""
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
    path = f"datasets/{repository}/resolve/{quote(revision, safe='')}/README.md"
    return why_unreachable(path)


def cached_builder(repository: str, config: str | None, commit: str | None = None) -> Any:
    """What makes the cached copy of a data set: of a commit, or the latest one; else None."""
    from datasets.packaged_modules.cache.cache import Cache

    try:
        if commit is None:
            version = commit = "auto"
        else:
            config, version = _find_cached(repository, config, commit)
        return Cache(
            repo_id=repository,
            dataset_name=repository.split("/")[-1],
            config_name=config,
            version=version,
            hash=commit,
        )
    except (OSError, ValueError) as error:  # not there, or only half of it
        logger.debug("no cached copy of %s %s: %s", repository, config, error)
        return None


def _find_cached(repository: str, config: str | None, commit: str) -> tuple[str, str]:
    """Configuration and version of a commit's copy; what `datasets` finds is the latest only."""
    from datasets import config as settings
    from datasets.naming import camelcase_to_snakecase

    *owner, name = repository.split("/")
    cached = Path(settings.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(name)]))
    found = []
    for info in cached.glob(f"*/*/{commit}/dataset_info.json"):
        folder, version = info.parts[-4:-2]
        # Of part of its files, or with options, the folder's name is longer than the configuration.
        is_whole = json.loads(info.read_text(encoding="utf-8")).get("config_name") == folder
        if is_whole and config in (None, folder):
            found.append((folder, version))
    if len(found) != 1:
        raise ValueError(f"{len(found)} copies of {commit}")
    return found[0]


def _splits(task: Task) -> list[str]:
    return [task.train_split, *task.validation_splits]


def _from_cache(task: Task) -> dict[str, datasets.Dataset] | None:
    builder = cached_builder(REPOSITORY, task.name)
    if builder is None:
        return None
    try:
        return {split: builder.as_dataset(split=split) for split in _splits(task)}
    except (OSError, ValueError) as error:
        logger.debug("half a cached copy of %s %s: %s", REPOSITORY, task.name, error)
        return None


def _from_hub(task: Task) -> dict[str, datasets.Dataset]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # The root error of the HTTP client that this version of the hub library is built on (httpx,
    # later httpx2).
    client_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    endpoint = datasets.config.HF_ENDPOINT
    if reason := why_no_hub(REPOSITORY):
        raise _unreachable(reason)
    try:
        loaded = datasets.load_dataset(REPOSITORY, task.name, split=_splits(task))
    except ConnectionError as error:
        raise _unreachable(str(error)) from error
    except (OSError, ValueError, client_error, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{REPOSITORY} ({task.name}) at {endpoint} could not be read: {error}. Try again, or "
            "give a folder with "
            "--data DIR"
        ) from error
    return dict(zip(_splits(task), loaded, strict=True))


def _unreachable(reason: str) -> HubUnreachableError:
    return HubUnreachableError(
        f"the Hugging Face hub can't be used: {reason}. No copy of {REPOSITORY} is cached. Give a "
        "folder with "
        "--data DIR or $GLUE_DIR, use --data sample for generated rows, or set HF_ENDPOINT to a "
        "mirror"
    )


def _check_labels(task: Task, split: str, names: list[str] | None) -> None:
    if names is not None and tuple(names) != task.labels:
        raise DataError(
            f"{REPOSITORY} ({task.name}, {split}) has the labels {', '.join(names)} in this order, "
            "expected "
            f"{', '.join(task.labels)}; answers would be permuted. Check HF_ENDPOINT and the cache "
            "in "
            f"{os.environ.get('HF_HOME', '~/.cache/huggingface')}"
        )


__all__ = ["Rows", "TaskData", "load_task"]

_NO_GLUE = "generated sample, not GLUE: metrics on it say nothing about the GLUE task"


def load_task(name: str, data: str | None = None) -> TaskData:
    """Load one GLUE task.

    Args:
        name: a key of `training.data.tasks.TASKS`.
        data: "hub", "sample", or a folder with `<task>/<split>.parquet`. None takes the folder in
            $GLUE_DIR if that is set, else the hub, else (no hub, no cached copy) the sample, with a
            warning.

    Raises:
        TaskError: no such task.
        DataError: the rows are missing or wrong; says which file, row and column, and what to do.
    """
    task = find_task(name)
    folder = os.environ.get("GLUE_DIR", "")
    if data is None and folder:
        return _load_folder(task, Path(folder), named_by="GLUE_DIR")
    if data is None:
        try:
            return _load_hub(task)
        except HubUnreachableError as error:
            logger.warning(
                "NOT REAL DATA: training %s on the built-in sample, because %s", task.name, error
            )
            return _load_sample(task)
    if data == "hub":
        return _load_hub(task)
    if data == "sample":
        return _load_sample(task)
    return _load_folder(task, Path(data), named_by="--data")


def _load_hub(task: Task) -> TaskData:
    tables = fetch_tables(task)
    return _assemble(task, "hub", {s: _rows(task, table, None) for s, table in tables.items()})


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
        hint = did_you_mean(str(folder), ("hub", "sample"))
        raise DataError(
            f"no such folder.{hint} {named_by} takes a folder with "
            f"{task.name}/{task.train_split}.parquet"
            + ("" if named_by == "GLUE_DIR" else ", or hub, or sample"),
            path=folder,
        )
    splits: dict[str, Rows] = {}
    for split in (task.train_split, *task.validation_splits):
        splits[split] = _read_split(task, folder / task.name, split)
    return _assemble(task, "folder", splits)


def _assemble(task: Task, source: str, splits: dict[str, Rows]) -> TaskData:
    notes = {split: _sample_note(task, split, len(rows)) for split, rows in splits.items()}
    return TaskData(
        task=task,
        source=source,
        note=notes[task.train_split],
        digest=digest_rows(splits),
        train=splits[task.train_split],
        validation={split: splits[split] for split in task.validation_splits},
        validation_notes={split: notes[split] for split in task.validation_splits if notes[split]},
    )


def _sample_note(task: Task, split: str, rows: int) -> str:
    """Say so when a split isn't the published one, judged by its size."""
    canonical = task.canonical_rows[split]
    if rows == canonical:
        return ""
    if rows > canonical:
        return f"not the GLUE {split} set: {rows:,} rows instead of {canonical:,}"
    return f"sample of the GLUE {split} set: {rows:,} of {canonical:,} rows"


def _read_split(task: Task, folder: Path, split: str) -> Rows:
    """Read `<split>.parquet`, or the numbered parts in which the hub stores a split."""
    path = folder / f"{split}.parquet"
    parts = [path] if path.is_file() else sorted(folder.glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
    if not parts:
        found = listing(sorted(item.name for item in folder.glob("*.parquet")))
        raise DataError(
            f"no such file; {task.name} needs {_needed(task)}; this folder has {found}", path=path
        )
    rows = [_rows(task, _read_parquet(task, part), part) for part in parts]
    texts = [text for part in rows for text in part.texts]
    return Rows(texts, [label for part in rows for label in part.labels])  # type: ignore[arg-type]


def _needed(task: Task) -> str:
    return ", ".join(f"{split}.parquet" for split in (task.train_split, *task.validation_splits))


def _read_parquet(task: Task, path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None)
        table.validate(full=True)  # text that isn't UTF-8 would fail much later, without a name
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a sound parquet file ({error}); fetch it again", path=path) from error
    names = _label_names(table)
    if names and tuple(names) != task.labels:
        raise DataError(
            f"the file says that its labels are {', '.join(names)}, but {task.name} has "
            f"{', '.join(task.labels)} in "
            "this order; answers would be permuted",
            path=path,
            column="label",
        )
    return table


def _label_names(table: pa.Table) -> list[str]:
    """The label names that `datasets` leaves in a file's header, if it does."""
    try:
        header = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        return list(header["info"]["features"]["label"]["names"])
    except (ValueError, KeyError, TypeError):
        return []


def _rows(task: Task, table: pa.Table, path: Path | None) -> Rows:
    """Check a table against the task and turn it into rows."""
    for column in (*task.text_fields, "label"):
        if table.column_names.count(column) != 1:
            hint = did_you_mean(column, table.column_names)
            raise DataError(
                f"needed exactly once; the file has {listing(table.column_names)}.{hint}",
                path=path,
                column=column,
            )
    if table.num_rows == 0:
        raise DataError("no rows; at least one is needed", path=path)
    texts = [_texts(table[field].to_pylist(), field, path) for field in task.text_fields]
    labels = _labels(task, table["label"].to_pylist(), path)
    return Rows(list(zip(*texts, strict=True)), labels)


def _texts(values: list[Any], column: str, path: Path | None) -> list[str]:
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            shown = "null" if value is None else f"{value!r} ({type(value).__name__})"
            raise DataError(
                f"{shown} where a text is needed; mend or drop the row",
                path=path,
                row=row,
                column=column,
            )
    return values


def _labels(task: Task, values: Sequence[Any], path: Path | None) -> Labels:
    for row, value in enumerate(values, start=1):
        problem = _label_problem(task, value)
        if problem:
            raise DataError(problem, path=path, row=row, column="label")
    return list(values)


def _label_problem(task: Task, value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value == -1:
        return "-1 means unlabelled (GLUE's test sets are); train and validation rows need labels"
    if task.kind == "regression":
        low, high = task.value_range or (-math.inf, math.inf)
        if number and math.isfinite(value) and low <= value <= high:
            return None
        return f"{value!r} is not allowed; a number from {low:g} to {high:g} is needed"
    if number and isinstance(value, int) and 0 <= value < len(task.labels):
        return None
    codes = ", ".join(f"{code} ({label})" for code, label in enumerate(task.labels))
    return f"{value!r} is not a label of {task.name}; allowed: {codes}"
