"""Tables of a GLUE task from the Hugging Face hub (`nyu-mll/glue`), or from its local cache.

A hub that can't be reached is noticed within five seconds: left alone, `datasets` retries for half
a minute. `training.data` checks the tables and turns them into rows. Other data sets:
`training.dataset`.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deltas.hub import why_unreachable
from training.errors import DataError
from training.tasks import Task

if (
    TYPE_CHECKING
):  # `datasets` takes seconds to import; only a run that reads from the hub pays for it.
    import datasets
    import pyarrow as pa

logger = logging.getLogger(__name__)

REPOSITORY = "nyu-mll/glue"


class HubUnreachableError(DataError):
    """Neither the hub nor a cached copy is there; `training.data` may fall back to the sample."""


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
