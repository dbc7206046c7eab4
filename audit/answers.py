"""Answers rows by several deltas as the server does: the same engine, rows of all tasks in a pass.

It also finds the deltas that a command line names. The engine is `app.engine.engine`;
`app.pipeline.predictions` turns logits into decisions.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from app.engine.engine import Engine, EngineRow
from app.errors import DeltaUnavailableError
from app.pipeline import RowLogits
from deltas.backbone.backbone import Backbone
from deltas.errors import DeltaError, DeltaFormatError
from deltas.store.store import Record, Store
from training.errors import ConfigError, listing

Asked = tuple[Record, Sequence[tuple[str, ...]]]  # a delta, and the texts of each row for it

_MAX_TOKENS = 4096  # of one pass
_TOKENIZED_TOGETHER = 256


def choose_records(paths: Sequence[Path], names: Sequence[str], backbone: Backbone) -> list[Record]:
    """Return the deltas that paths and names stand for: files, and then tasks of folders.

    Args:
        paths: delta files, and folders of them.
        names: tasks of the folders, each with a strategy or without: "joy", "joy/head". Without
            names the default delta of every task is taken.
        backbone: the backbone of the deltas.

    Raises:
        DeltaError: no such file or task, or a delta that is not sound or of another backbone.
        ConfigError: names without a folder, or one delta twice.
    """
    folders = [path for path in paths if path.is_dir()]
    chosen = [_record_of(path, backbone) for path in paths if path not in folders]
    if names and not folders:
        raise ConfigError("--tasks chooses among the deltas of a folder; name a folder")
    store = Store(folders, backbone=backbone.ref)
    if folders and not store.records:
        reasons = "".join(f"; refused {path}: {reason}" for path, reason in store.rejected[:1])
        raise DeltaError(f"no deltas below {listing(map(str, folders))}{reasons}")
    for name in names or store.tasks:
        task, _, strategy = name.partition("/")
        chosen.append(store.resolve(task, strategy or None))
    for key, count in Counter(record.key for record in chosen).items():
        if count > 1:
            raise ConfigError(f"{key[0]}/{key[1]} (version {key[2]}) is named twice; name it once")
    return chosen


def _record_of(path: Path, backbone: Backbone) -> Record:
    if not path.is_file():
        raise DeltaError(f"{path}: no such file or folder")
    store = Store([path], backbone=backbone.ref)
    for _, reason in store.rejected:
        raise DeltaFormatError(path, reason)
    return store.records[0]


def names_of(records: Sequence[Record]) -> list[str]:
    """Return a name for each delta: its task, with strategy and version if tasks repeat."""
    tasks = Counter(record.manifest.task.name for record in records)
    keys = Counter(record.manifest.key for record in records)
    names = []
    for record in records:
        task, strategy = record.manifest.key
        name = task if tasks[task] == 1 else f"{task}/{strategy}"
        names.append(name if keys[task, strategy] == 1 else f"{name}/{record.version}")
    return names


def predict(engine: Engine, asked: Sequence[Asked]) -> list[list[RowLogits]]:
    """Return the logits of each row, for each delta, and show the progress on a terminal.

    All deltas are asked the same number of rows. A row's texts for all deltas share a pass.

    Raises:
        DeltaUnavailableError: the file of a delta can't be loaded now.
    """
    num_rows = len(asked[0][1])
    answers: list[list[RowLogits]] = [[] for _ in asked]
    with tqdm(total=num_rows, unit="row", file=sys.stderr, disable=None) as bar:
        for groups in _passes(_tokenized(engine, asked)):
            rows = [row for group in groups for row in group]
            outcomes = zip(rows, engine.predict(rows), strict=True)
            for position, (row, outcome) in enumerate(outcomes):
                if isinstance(outcome, DeltaUnavailableError):
                    raise outcome
                answers[position % len(asked)].append(RowLogits(outcome, row.tokens.truncated))
            bar.update(len(groups))
    return answers


def _tokenized(engine: Engine, asked: Sequence[Asked]) -> Iterator[tuple[EngineRow, ...]]:
    """Yield each row, tokenized for every delta."""
    for start in range(0, len(asked[0][1]), _TOKENIZED_TOGETHER):
        end = start + _TOKENIZED_TOGETHER
        parts = [engine.tokenize(record, texts[start:end]) for record, texts in asked]
        yield from zip(*parts, strict=True)


def _passes(
    groups: Iterator[tuple[EngineRow, ...]],
) -> Iterator[list[tuple[EngineRow, ...]]]:
    """Join rows to passes of a limited number of tokens, at least one row each."""
    joined: list[tuple[EngineRow, ...]] = []
    num_tokens = 0
    for group in groups:
        size = sum(row.num_tokens for row in group)
        if joined and num_tokens + size > _MAX_TOKENS:
            yield joined
            joined, num_tokens = [], 0
        joined.append(group)
        num_tokens += size
    if joined:
        yield joined
