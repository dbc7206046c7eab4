"""Loads a custom task from a data set: one of the Hugging Face hub, or a folder that holds one.

The data set is fetched, or found in the cache of `datasets`, and two of its splits become columns,
which `training.data.custom` interprets as those of files. No code of a data set is ever run:
`datasets` reads data files only. CSV and JSON files whose types the data set does not declare are
read like the user's own: `datasets` would guess, and take `007` for 7 and `NA` for a missing value.
`training.data.glue` finds out if the hub answers.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from deltas.errors import did_you_mean
from training.data.custom import CustomTask, custom_data
from training.data.files.columns import Columns, find_columns, plain
from training.data.files.delimited import DelimitedOptions
from training.data.files.dialect import SEPARATORS
from training.data.files.reader import read_columns
from training.data.glue import HubUnreachableError, split_files, why_no_hub
from training.data.rows import TaskData
from training.errors import ConfigError, DataError, counted, listing

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_FORM = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Names that `datasets` takes for a reader of the files in the current folder.
_FORMATS = ("arrow", "csv", "json", "pandas", "parquet", "text")
_HUB_TIMEOUT_S = 10.0
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Address:
    """The parts of the text after `--dataset`."""

    name: str
    config: str | None = None
    revision: str | None = None
    is_folder: bool = False

    @property
    def shown(self) -> str:
        """The name for messages and notes; only the last part of a folder."""
        name = Path(self.name).resolve().name if self.is_folder else self.name
        return f"{name}:{self.config}" if self.config else name

    @property
    def title(self) -> str:
        """The beginning of messages."""
        return f"data set {self.shown}"


@dataclass(frozen=True)
class _DataSet:
    """The splits of a data set, a function that reads one, and the commit, if it is known."""

    splits: Sequence[str]
    read: Callable[[str, CustomTask], Columns]
    commit: str | None = None


def load_data_set(text: str, splits: tuple[str, str | None], custom: CustomTask) -> TaskData:
    """Load a custom task from a data set.

    Args:
        text: a name on the hub, `owner/name[:config][@revision]`, or `folder[:config]`.
        splits: the split to train on and the split to evaluate on. None takes "validation", or
            holds out a fifth of the train split's rows if there is no such split.
        custom: the columns to read, and their meaning.

    Raises:
        ConfigError: the text can't be a data set.
        HubUnreachableError: the hub doesn't answer, and nothing is cached.
        DataError: the data set can't be used; names the split, row and column.
    """
    from deltas.manifest import DataSetRef

    address = parse_address(text)
    data_set = _from_folder(address) if address.is_folder else _from_hub(address)
    train_split, validation_split = splits
    if validation_split is None and "validation" in data_set.splits and train_split != "validation":
        validation_split = "validation"
    for flag, split in (("--train-split", train_split), ("--validation-split", validation_split)):
        if split is not None and split not in data_set.splits:
            hint = f"choose with {flag}.{did_you_mean(split, data_set.splits)}"
            problem = f"no split {split!r}; it has {listing(data_set.splits)}; {hint}"
            raise DataError(problem, path=address.title)
    train = data_set.read(train_split, custom)
    validation = None
    if validation_split is not None:
        validation = data_set.read(validation_split, custom)
    data = custom_data(custom, train, validation, "folder" if address.is_folder else "hub")
    ref = DataSetRef(
        name=replace(address, config=None).shown,
        config=address.config,
        revision=data_set.commit,
        train_split=train_split,
        validation_split=validation_split,
    )
    return replace(data, data_set=ref)


def parse_address(text: str) -> Address:
    """Take the text after `--dataset` apart; an existing folder comes before the hub.

    Raises:
        ConfigError: the text can't be a data set.
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
        if not address.revision:
            return replace(address, is_folder=True)
        problem = "that is a folder, which has no revisions"
    elif Path(address.name).exists():
        problem = "that is a file; files go with --train-file"
    elif not _HUB_NAME.fullmatch(address.name):
        problem = "no such folder, and no name that the hub could have"
    elif address.name in _FORMATS:
        problem = "that is a format, not a data set; files go with --train-file"
    else:
        return address
    raise ConfigError(f"--dataset {text!r}: {problem}")


def _from_folder(address: Address) -> _DataSet:
    import datasets

    folder = Path(address.name)
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _build(str(folder.resolve()), address)
    if address.config:
        raise DataError(f"no configuration {address.config!r}; it has none", path=address.title)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"can't be read: {_reason(error)}", path=address.title) from error
    by_split = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return _of_datasets(address, list(by_split), by_split.__getitem__)


def _from_hub(address: Address) -> _DataSet:
    """Fetch a data set, or use the cached copy of a pinned commit, or any copy without a hub."""
    from huggingface_hub import HfApi

    if _COMMIT.fullmatch(address.revision or "") and (cached := _from_cache(address)):
        return cached
    reason = why_no_hub(address.name, address.revision or "main")
    if not reason:
        try:
            asked: dict[str, Any] = {"revision": address.revision, "timeout": _HUB_TIMEOUT_S}
            commit = HfApi().dataset_info(address.name, **asked).sha
        except Exception as error:  # noqa: BLE001 - of the hub or of its HTTP client
            reason = _reason(error)
        else:
            return _build(address.name, address, commit)
    cached = None if address.revision else _from_cache(address)
    if cached is None:
        of_revision = f" of {address.revision}" if address.revision else ""
        problem = (
            f"no such folder, and the Hugging Face hub can't be used: {reason}. No "
            f"copy{of_revision} is in its cache. Check the name, give a folder that holds the data "
            "set, or set HF_ENDPOINT to a mirror"
        )
        raise HubUnreachableError(problem, path=address.title)
    warning = "%s: taking the cached copy of commit %s, since %s"
    logger.warning(warning, address.title, cached.commit, reason)
    return cached


def _from_cache(address: Address) -> _DataSet | None:
    """Return the copy of the pinned commit in the cache of `datasets`, or the latest copy."""
    from datasets import Dataset, DatasetInfo, concatenate_datasets, config

    owner, _, name = address.name.rpartition("/")
    prefix = f"{owner}___" if owner else ""
    chosen = glob.escape(address.config) if address.config else "*"
    pattern = f"{prefix}*/{chosen}/*/{address.revision or '*'}/dataset_info.json"
    copies: dict[Path, DatasetInfo] = {}
    for path in Path(config.HF_DATASETS_CACHE).glob(pattern):
        folder = path.parent
        cached_name = folder.parts[-4].removeprefix(prefix)
        # `datasets` writes MyRows as my_rows.
        is_same = cached_name.replace("_", "").lower() == name.replace("_", "").lower()
        if is_same and _COMMIT.fullmatch(folder.name):
            info = DatasetInfo.from_directory(str(folder))
            # A copy of some files, or with options, has a longer name than its configuration.
            if info.config_name == folder.parts[-3]:
                copies[folder] = info
    if len({info.config_name for info in copies.values()}) != 1:
        return _from_snapshot(address)
    latest = max(copies, key=lambda folder: folder.stat().st_mtime)
    info = copies[latest]

    def read(split: str) -> datasets.Dataset:
        files = split_files(latest, f"{info.dataset_name}-{split}.arrow")
        return concatenate_datasets([Dataset.from_file(str(file)) for file in files])

    return _of_datasets(address, list(info.splits or {}), read, latest.name)


def _from_snapshot(address: Address) -> _DataSet | None:
    """Return the files of the pinned commit, or the latest files, in the cache of the hub.

    CSV and JSON files are there; of others, `datasets` keeps copies of its own.
    """
    from huggingface_hub import constants

    name = f"datasets--{address.name.replace('/', '--')}"
    folders = Path(constants.HF_HUB_CACHE, name, "snapshots").glob(address.revision or "*")
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        with suppress(DataError):
            found = _build(str(folder), replace(address, revision=None))
            return replace(found, commit=folder.name)
    return None


def _build(source: str, address: Address, commit: str | None = None) -> _DataSet:
    """Let `datasets` fetch and read all splits; foreign data can fail in any way."""
    import datasets

    try:
        build = partial(
            datasets.load_dataset_builder, source, address.config, revision=address.revision
        )
        builder = build()
        text_files = _text_files(builder, build)
        if text_files is None:
            builder.download_and_prepare()
    except Exception as error:
        problem = _config_problem(source, address) if type(error) is ValueError else ""
        problem = problem or f"can't be read: {_reason(error)}"
        raise DataError(problem, path=address.title) from error
    if commit not in (None, builder.hash):  # on any failure `datasets` takes what is in its cache
        problem = f"can't be read: commit {commit} was asked for, {builder.hash} found; try again"
        raise DataError(problem, path=address.title)
    if text_files is not None:
        return _DataSet(list(text_files), _reader_of(address, builder, text_files), commit)
    splits = builder.info.splits or {}

    def read(split: str) -> datasets.Dataset:
        if splits[split].num_examples:
            return builder.as_dataset(split=split)
        return datasets.Dataset.from_dict({name: [] for name in builder.info.features})

    return _of_datasets(address, list(splits), read, commit)


def _text_files(
    builder: datasets.DatasetBuilder, build: Callable[..., datasets.DatasetBuilder]
) -> Mapping[str, Sequence[str]] | None:
    """Return the CSV or JSON files of each split, unless the data set says how to read them.

    `build` makes the builder again.
    """
    from datasets import BuilderConfig
    from datasets.packaged_modules.csv.csv import CsvConfig
    from datasets.packaged_modules.json.json import JsonConfig

    config = builder.config
    if not isinstance(config, CsvConfig | JsonConfig):
        return None
    # Types are declared by the data set, or stand in the cache, where they were guessed.
    if builder.info.features is not None:
        with TemporaryDirectory() as empty:
            if build(cache_dir=empty).info.features is not None:
                return None
    # Not options of reading, or such as are found out.
    others = {field.name for field in fields(BuilderConfig)} | {"sep", "delimiter"}
    options = [field for field in fields(config) if field.name not in others]
    if any(getattr(config, option.name) != option.default for option in options):
        return None
    return {str(split): list(files) for split, files in (config.data_files or {}).items()}


def _config_problem(source: str, address: Address) -> str:
    """Return the problem with the configuration that was asked for, or "" if there is none."""
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


def _reader_of(
    address: Address, builder: datasets.DatasetBuilder, files: Mapping[str, Sequence[str]]
) -> Callable[[str, CustomTask], Columns]:
    """Return a function that reads a split from CSV or JSON files like the user's own files."""
    separator = getattr(builder.config, "sep", ",")
    options = DelimitedOptions(None if separator in SEPARATORS else separator)

    def read(split: str, custom: CustomTask) -> Columns:
        from datasets import DownloadManager

        title = f"{address.title}, split {split}"
        parts = []
        try:
            paths = DownloadManager().download(list(files[split]))
        except Exception as error:  # of the hub or of its HTTP client
            raise DataError(f"can't be read: {_reason(error)}", path=title) from error
        for path in map(Path, paths):
            try:
                parts.append(read_columns(path, custom.columns, options))
            except DataError as error:
                where = f"{title}, file {path.name}"
                raise DataError(
                    error.problem, path=where, row=error.row, column=error.column
                ) from error
        return Columns(
            title,
            sum(part.num_rows for part in parts),
            {name: [v for part in parts for v in part.values[name]] for name in custom.columns},
            parts[0].is_text_only,
            reading_notes=tuple(
                f"{title}, {note}" for part in parts for note in part.reading_notes
            ),
            warnings=tuple(warning for part in parts for warning in part.warnings),
            files=tuple((part.name, part.num_rows) for part in parts),
        )

    return read


def _of_datasets(
    address: Address,
    splits: Sequence[str],
    load: Callable[[str], datasets.Dataset],
    commit: str | None = None,
) -> _DataSet:
    """Return a data set whose splits `load` reads, with the types that they have there."""

    def read(split: str, custom: CustomTask) -> Columns:
        title = f"{address.title}, split {split}"
        try:
            rows = load(split).with_format(None)
        except Exception as error:
            raise DataError(f"can't be read: {_reason(error)}", path=title) from error
        positions = find_columns(title, custom.columns, rows.column_names)
        names = [rows.column_names[position] for position in positions]
        if not len(rows):
            raise DataError("no rows; at least one is needed", path=title)
        found = dict(zip(custom.columns, names, strict=True))
        values = {column: _values(rows, name, title) for column, name in found.items()}
        classes = {column: _label_names(rows.features[name]) for column, name in found.items()}
        return Columns(
            title,
            len(rows),
            values,
            class_names={column: known for column, known in classes.items() if known},
            reading_notes=(f"{title}: {counted(len(rows), 'row')}",),
        )

    return _DataSet(splits, read, commit)


def _values(rows: datasets.Dataset, column: str, title: str) -> list[Any]:
    try:
        return [plain(value) for value in rows[column][:]]
    except Exception as error:  # decoding pictures and sounds needs libraries
        raise DataError(f"can't be read: {_reason(error)}", path=title, column=column) from error


def _label_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a column of class labels, or of lists of them; () for other columns."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _reason(error: Exception) -> str:
    """Return a library's message on one line; a file's error is the cause of the library's."""
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return "the data set has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such data set, or you may not read it (try `hf auth login`)"
    found = (type(error) is DatasetGenerationError and error.__cause__) or error
    return shorten(str(found), _LONGEST_REASON, placeholder="...") or type(found).__name__
