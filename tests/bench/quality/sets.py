"""Names the sets of `make bench-quality`, as options of `training.fit`, and loads their rows.

A set is a GLUE task, one of six public sets in users' own form, or any file or folder that a user
names with `--fresh`. All methods read a set by the code of `training.fit`, hence the same rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.files.content import open_text
from training.data.files.dialect import find_dialect
from training.data.files.reader import is_delimited
from training.data.files.spelling import clean
from training.data.rows import TaskData
from training.data.tasks import TASKS
from training.errors import ConfigError, DataError, listing
from training.fit import parse_arguments
from training.options import FitConfig
from training.run.train_delta import _load_rows

LARGE_SET_ROWS = 8000  # train rows that are drawn from a large set unless the user says otherwise
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_DEV_NAMES = ("test", "validation", "dev", "valid", "val")  # the first one found is scored


@dataclass(frozen=True)
class QualitySet:
    """A set of rows: options of `training.fit`, with files relative to `root`."""

    name: str
    options: tuple[str, ...]
    root: Path | None = None
    is_large: bool = False

    def words(self) -> list[str]:
        """Return the options with the files in their place."""
        files = {"--train-file", "--validation-file"}
        before = ("", *self.options)
        return [
            str(self.root / word) if self.root and previous in files else word
            for previous, word in zip(before, self.options, strict=False)
        ]


def _glue(name: str, *, is_large: bool = False) -> QualitySet:
    return QualitySet(name, ("--task", name), is_large=is_large)


GLUE_SETS = (
    _glue("cola"),
    _glue("sst2", is_large=True),
    _glue("mrpc"),
    _glue("stsb"),
    _glue("qqp", is_large=True),
    _glue("mnli", is_large=True),
    _glue("qnli", is_large=True),
    _glue("rte"),
)
# Name, files, label column. A test file is scored if there is one; a validation file beside it is
# not read at all, because states and rates are selected on a slice of the train rows.
_PUBLIC = (
    ("clinc150", "clinc150/train.csv", "clinc150/test.csv", "intent"),
    ("sst5", "sst5/train.csv", "sst5/test.csv", "label"),
    ("goemotions", "goemotions/train.jsonl", "goemotions/test.jsonl", "emotions"),
    ("mr", "mr/all.csv", "", "label"),
    ("cr", "cr/all.csv", "", "label"),
    ("subj", "subj/all.csv", "", "label"),
)


def public_sets(root: Path) -> list[QualitySet]:
    """Return the six public sets of a folder, see `--own`."""
    return [
        QualitySet(name, _file_options(name, train, dev, ["text"], label), root)
        for name, train, dev, label in _PUBLIC
    ]


def _file_options(
    name: str, train: str, dev: str, texts: Sequence[str], label: str
) -> tuple[str, ...]:
    validation = ("--validation-file", dev) if dev else ()
    columns = ("--text-columns", ",".join(texts), "--label-column", label, "--name", name)
    return ("--train-file", train, *validation, *columns)


def fresh_sets(path: Path, text_columns: str, label_column: str) -> list[QualitySet]:
    """Return the set of a file or folder, or the sets of a folder's folders.

    A folder holds `train` and `test` (or `validation`, `dev`) in one of the known formats, or one
    file alone. Without column names, the last column has the labels and the others have the texts.

    Raises:
        ConfigError: the path holds no such files, or its columns must be named.
    """
    if path.is_file():
        return [_fresh_set(path.parent, path, None, text_columns, label_column)]
    if not path.is_dir():
        raise ConfigError(f"--fresh {path}: no such file or folder")
    found = []
    for folder in (path, *sorted(item for item in path.iterdir() if item.is_dir())):
        files = {item.stem: item for item in sorted(folder.iterdir()) if item.suffix in _SUFFIXES}
        dev = next((files[name] for name in _DEV_NAMES if name in files), None)
        train = files.get("train")
        if train is None and len(files) == 1:
            (train,), dev = files.values(), None
        if train is not None:
            found.append(_fresh_set(folder, train, dev, text_columns, label_column))
    if not found:
        raise ConfigError(
            f"--fresh {path}: neither it nor a folder in it holds train and test (or validation), "
            f"or one file alone; known formats: {', '.join(_SUFFIXES)}"
        )
    return found


def _fresh_set(
    folder: Path, train: Path, dev: Path | None, text_columns: str, label_column: str
) -> QualitySet:
    texts, label = text_columns.split(",") if text_columns else [], label_column
    if not (texts and label):
        names = _column_names(train)
        label = label or [name for name in names if name not in texts][-1]
        texts = texts or [name for name in names if name != label]
    if len(texts) not in (1, 2):
        raise ConfigError(
            f"--fresh {train}: it has the columns {listing([*texts, label])}; say which to use "
            "with --text-columns a or a,b and --label-column c"
        )
    stem = folder.resolve().name if train.stem in ("train", "all", "data") else train.stem
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:60] or "set"
    name = f"my-{name}" if name in TASKS else name
    options = _file_options(name, train.name, dev.name if dev else "", texts, label)
    return QualitySet(name, options, folder)


def _column_names(path: Path) -> list[str]:
    """Return the names of a file's columns, in its order."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    if is_delimited(path):
        dialect = find_dialect(path, ())
        with open_text(path) as lines:
            header: list[str] = next(filter(None, dialect.reader(lines, quoted=True)), [])
        return [clean(name) for name in header]
    with open_text(path) as lines:
        try:
            return list(json.loads(next(lines, "")))
        except (ValueError, TypeError) as error:
            problem = "the first line is no JSON object; give --text-columns and --label-column"
            raise DataError(problem, path=path, row=1) from error


def load_rows(config: FitConfig) -> TaskData:
    """Load the rows of a run as `training.fit` does.

    Raises:
        DataError: the rows can't be used, or are the generated sample instead of real rows.
    """
    data = _load_rows(config)
    if data.source == "sample" and config.data != "sample":
        raise DataError(f"no rows of {data.task.name} are in reach; set GLUE_DIR, or give --glue")
    return data


class LoadedSet:
    """The rows of a set, and the options with which each seed of a run sees them."""

    def __init__(self, chosen: QualitySet, asked_rows: int | None, extra: Iterable[str]) -> None:
        """Load all rows; `asked_rows` and `extra` are `--train-rows` and `--fit-args`."""
        self.set, self._extra = chosen, list(extra)
        self._data = load_rows(parse_arguments([*chosen.words(), *self._extra]))
        limit = asked_rows or (LARGE_SET_ROWS if chosen.is_large else len(self._data.train))
        self._drawn = limit if limit < len(self._data.train) else None
        self._digests: dict[int, str] = {}

    @property
    def kind(self) -> str:
        """The kind of the task: single_label, multi_label or regression."""
        return self._data.task.kind

    @property
    def is_pair(self) -> bool:
        """True if a row has two texts."""
        return len(self._data.task.text_fields) == 2

    @property
    def num_labels(self) -> int:
        """The number of labels, 0 for regression."""
        return len(self._data.task.labels)

    def digest(self, seed: int) -> str:
        """Return the digest of the rows that a run of this seed sees; equal if none are drawn."""
        if self._drawn is None:
            return self._data.digest
        if seed not in self._digests:
            self._digests[seed] = self._data.subset(self._drawn, seed).digest
        return self._digests[seed]

    def words(self, seed: int) -> list[str]:
        """Return the options of `training.fit` for a run of this seed."""
        return [*self.set.words(), *self._more(seed)]

    def shown(self, seed: int) -> list[str]:
        """Return the same options with files relative to the set's folder."""
        return [*self.set.options, *self._more(seed)]

    def _more(self, seed: int) -> list[str]:
        drawn = ["--train-rows", str(self._drawn)] if self._drawn else []
        return [*drawn, "--seed", str(seed), *self._extra]
