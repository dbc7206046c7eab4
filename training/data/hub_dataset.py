"""A task made of a data set of the Hugging Face hub, or of a folder that holds one.

    name -> hub, its cache, or folder -> the two splits' columns -> rows, as for files

What columns mean is `training.data.custom`. No code of a data set is ever run: `datasets` reads data files
only. Whether the hub answers: `training.data.glue`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltas.errors import did_you_mean
from deltas.manifest import DataSetRef
from training.data.columns import Columns, plain, require
from training.data.custom import CustomTask, custom_data
from training.data.glue import HubUnreachableError, cached_builder, why_no_hub
from training.data.rows import TaskData
from training.errors import ConfigError, DataError, listing

if TYPE_CHECKING:  # `datasets` takes seconds to import; only a run that needs it pays for it.
    import datasets

logger = logging.getLogger(__name__)

_FORM = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Address:
    """Where a data set is: what `--dataset` says, taken apart."""

    name: str
    config: str | None = None
    revision: str | None = None
    is_folder: bool = False

    @property
    def shown(self) -> str:
        """For messages and notes: of a folder only its name."""
        name = Path(self.name).resolve().name if self.is_folder else self.name
        return f"{name}:{self.config}" if self.config else name


@dataclass(frozen=True)
class Found:
    """A data set that is there: its splits, what reads one, and its commit where that is known."""

    splits: Sequence[str]
    read: Callable[[str], datasets.Dataset]
    commit: str | None = None


def load_data_set(text: str, splits: tuple[str, str | None], custom: CustomTask) -> TaskData:
    """Load a task of the user's own from a data set.

    Args:
        text: a name on the hub, `owner/name[:config][@revision]`, or `folder[:config]`.
        splits: to train on, and to judge on; None takes "validation", or where there is none holds
            out a fifth of the train split's rows.
        custom: which columns there are, and what they mean.

    Raises:
        ConfigError: the text is no name of a data set.
        HubUnreachableError: the hub doesn't answer, and nothing is cached.
        DataError: the data set can't be used; says which split, row and column.
    """
    address = parse_address(text)
    found = _from_folder(address) if address.is_folder else _from_hub(address)
    train_split, validation_split = splits
    if validation_split is None and "validation" in found.splits and train_split != "validation":
        validation_split = "validation"
    for flag, split in (("--train-split", train_split), ("--validation-split", validation_split)):
        if split is not None and split not in found.splits:
            raise DataError(
                f"no split {split!r}; it has {listing(found.splits)}; choose with {flag}."
                f"{did_you_mean(split, found.splits)}",
                path=_title(address),
            )
    train = _columns(address, found, train_split, custom)
    validation = _columns(address, found, validation_split, custom) if validation_split else None
    data = custom_data(custom, train, validation, "folder" if address.is_folder else "hub")
    known = DataSetRef(
        name=replace(address, config=None).shown,
        config=address.config,
        revision=found.commit,
        train_split=train_split,
        validation_split=validation_split,
    )
    return replace(data, data_set=known)


def parse_address(text: str) -> Address:
    """Take what `--dataset` says apart; a folder that is there comes before the hub.

    Raises:
        ConfigError: it can't be a data set.
    """
    if Path(text).is_dir():
        return Address(text, is_folder=True)
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--dataset {text!r}: give owner/name, owner/name:config or "
            "owner/name:config@revision, or a folder"
        )
    address = Address(match["name"], match["config"], match["revision"])
    if Path(address.name).is_dir():
        if address.revision:
            raise ConfigError(f"--dataset {text!r}: that is a folder, which has no revisions")
        return replace(address, is_folder=True)
    if Path(address.name).exists():
        raise ConfigError(f"--dataset {text!r}: that is a file; files go with --train-file")
    if not _HUB_NAME.fullmatch(address.name):
        raise ConfigError(
            f"--dataset {text!r}: no such folder, and no name that the hub could have"
        )
    return address


def _from_folder(address: Address) -> Found:
    import datasets

    folder = Path(address.name)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if not saved:
        return _build(str(folder.resolve()), address)
    if address.config:
        raise DataError(f"no configuration {address.config!r}; it has none", path=_title(address))
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"can't be read: {_reason(error)}", path=_title(address)) from error
    by_split = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return Found(list(by_split), by_split.__getitem__)


def _from_hub(address: Address) -> Found:
    """From the cache if it has the commit that is asked for, or no hub is there."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if address.name in _PACKAGED_DATASETS_MODULES:  # `datasets` would read the current folder
        raise ConfigError(
            f"--dataset {address.name!r} is a format, not a data set; files go with --train-file"
        )
    if _COMMIT.fullmatch(address.revision or "") and (cached := _from_cache(address)):
        return cached
    reason = why_no_hub(address.name, address.revision or "main")
    if not reason:
        return _build(address.name, address)
    cached = None if address.revision else _from_cache(address)
    if cached is None:
        raise _unreachable(address, reason)
    logger.warning(
        "%s: taking the cached copy of commit %s, since %s", _title(address), cached.commit, reason
    )
    return cached


def _from_cache(address: Address) -> Found | None:
    """The copy of the commit that was asked for, or the latest one."""
    builder = cached_builder(address.name, address.config, address.revision)
    return builder and _found(builder)


def _unreachable(address: Address, reason: str) -> HubUnreachableError:
    of = f" of {address.revision}" if address.revision else ""
    return HubUnreachableError(
        f"no such folder, and the Hugging Face hub can't be used: {reason}. No copy{of} is in its "
        "cache. Try again, give a folder that holds the data set, or set HF_ENDPOINT to a mirror",
        path=_title(address),
    )


def _build(source: str, address: Address) -> Found:
    """Have `datasets` fetch and read all splits; data of strangers can fail in any way."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = datasets.load_dataset_builder(source, address.config, revision=address.revision)
        builder.download_and_prepare()
    except Exception as error:
        problem = _config_problem(source, address) if type(error) is ValueError else ""
        raise DataError(
            problem or f"can't be read: {_reason(error)}", path=_title(address)
        ) from error
    if isinstance(builder, Cache) and address.revision not in (None, builder.hash):
        # `datasets` falls back to the cache when a repository is gone, whatever was asked for.
        raise _unreachable(address, "it does not give out this data set")
    return _found(builder)


def _found(builder: Any) -> Found:
    splits = builder.info.splits or {}

    def read(split: str) -> datasets.Dataset:
        if splits[split].num_examples:
            return builder.as_dataset(split=split)
        from datasets import Dataset

        return Dataset.from_dict({name: [] for name in builder.info.features})

    commit = str(builder.hash)
    return Found(list(splits), read, commit if _COMMIT.fullmatch(commit) else None)


def _config_problem(source: str, address: Address) -> str:
    """What is wrong with the configuration that was asked for; "" when it is not that."""
    import datasets

    try:
        names = datasets.get_dataset_config_names(source, revision=address.revision)
    except Exception:  # noqa: BLE001 - then the first error says more
        return ""
    if address.config is None and len(names) > 1:
        several = f"several configurations ({listing(names)})"
        return f"{several}; add one to its name, like {address.shown}:{names[0]}"
    if address.config is None or address.config in names:
        return ""
    hint = did_you_mean(address.config, names)
    return f"no configuration {address.config!r}; it has {listing(names)}.{hint}"


def _columns(address: Address, found: Found, split: str, custom: CustomTask) -> Columns:
    where = f"{_title(address)}, split {split}"
    try:
        dataset = found.read(split).with_format(None)
    except Exception as error:
        raise DataError(f"can't be read: {_reason(error)}", path=where) from error
    require(where, custom.columns, dataset.column_names)
    if not len(dataset):
        raise DataError("no rows; at least one is needed", path=where)
    values = {column: _values(dataset, column, where) for column in custom.columns}
    return Columns(where, len(dataset), values, _names(dataset.features[custom.label_column]))


def _values(dataset: datasets.Dataset, column: str, where: str) -> list[Any]:
    try:
        values = plain(dataset[column][:])
    except Exception as error:  # decoding pictures and sounds needs libraries
        raise DataError(f"can't be read: {_reason(error)}", path=where, column=column) from error
    names = _names(dataset.features[column])
    return [_named(value, names) for value in values] if names else values


def _names(feature: Any) -> tuple[str, ...]:
    """The names of a column of class labels, or of lists of them; else none."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """The name of a code; -1 means that a row has none, as in many test splits."""
    if isinstance(value, list):
        return [_named(part, names) for part in value]
    return None if value is None or value < 0 else names[value]


def _title(address: Address) -> str:
    return f"data set {address.shown}"


def _reason(error: Exception) -> str:
    """The library's own words on one line; what went wrong in a file is the cause of its error."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    found: BaseException = error
    if type(error) is DatasetGenerationError and error.__cause__:
        found = error.__cause__
    words = " ".join(str(found).split()) or type(found).__name__
    if isinstance(error, DatasetNotFoundError):
        words += " Check its name; a private one needs `hf auth login`"
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}..."
