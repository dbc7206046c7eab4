"""Rows in memory: the form in which every data source hands its rows to training.

`training.data.glue`, `training.data.custom` and `training.data.sample` make them, and the training
loop reads them. Drawing subsets, holding out rows and the digest of rows are here as well.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from training.errors import ConfigError

if TYPE_CHECKING:
    from deltas.manifest import DataSetRef, TaskKind
    from training.data.tasks import Task

Labels = list[int] | list[float] | list[list[int]]


@dataclass(frozen=True)
class Rows:
    """Texts and labels of one split, in order.

    Labels are codes (single label), values (regression), or lists of 0 and 1, one for each label of
    the task (multi label).
    """

    texts: list[tuple[str, ...]]  # one string for each of the task's text fields
    labels: Labels
    # Row numbers in the file or split that the rows were read from; empty for all of them in order.
    numbers: list[int] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def number(self, position: int) -> int:
        """Return a row's number where it was read, counted from 1 as in error messages."""
        return self.numbers[position] if self.numbers else position + 1

    def take(self, positions: Iterable[int]) -> Rows:
        """Return the rows at these positions, in this order."""
        chosen = list(positions)
        labels: list[object] = [self.labels[position] for position in chosen]
        texts = [self.texts[position] for position in chosen]
        return Rows(texts, labels, list(map(self.number, chosen)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class TaskData:
    """All rows of one task that a run may use."""

    task: Task
    source: str  # "hub", "folder", "sample" or "files"
    note: str  # a remark on the train rows for readers of results; "" for the published rows
    digest: str  # SHA-256 of train and validation rows; the same for every source
    train: Rows  # a selection set is split from them
    validation: dict[str, Rows]  # by split name
    validation_notes: dict[str, str] = field(default_factory=dict)  # of splits that need one
    data_set: DataSetRef | None = None  # of the rows, if the user named one
    reading_notes: tuple[str, ...] = ()  # sentences on how files and labels were read
    warnings: tuple[str, ...] = ()  # sentences on what looked odd in them; they were also logged

    def subset(self, train_rows: int, seed: int) -> TaskData:
        """Keep `train_rows` of the train rows, drawn by `seed`; validation stays whole.

        Smaller subsets of the same seed are contained in larger ones, and every label of the train
        set occurs, so that points of a curve over the number of rows are comparable.

        Raises:
            ConfigError: fewer rows than labels, or more rows than there are. The number is never
                rounded: a point of a size curve must have the size that it says.
        """
        labels = [str(label) for label in self.train.labels]
        distinct = len(set(labels)) if self.task.kind == "single_label" else 1
        if not distinct <= train_rows <= len(self.train):
            raise ConfigError(
                f"--train-rows {train_rows}: {self.task.name} has {len(self.train):,} train rows "
                f"and needs at least {distinct}; give a number from {distinct} to "
                f"{len(self.train)}, or leave the option out to use all"
            )
        order = list(range(len(self.train)))
        random.Random(seed).shuffle(order)
        if self.task.kind == "single_label":
            first = {labels[position]: position for position in reversed(order)}
            one_of_each = set(first.values())
            order.sort(key=lambda position: position not in one_of_each)
        train = self.train.take(sorted(order[:train_rows]))
        note = f"{train_rows:,} of {len(self.train):,} train rows drawn with seed {seed}"
        return replace(
            self,
            train=train,
            note=f"{self.note}; {note}" if self.note else note,
            digest=digest_rows({self.task.train_split: train, **self.validation}),
        )


def hold_out(rows: Rows, kind: TaskKind, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows in two: the rows that are kept, and about `fraction` of each label's, held out.

    Rows with the same texts stay on one side; otherwise the held-out rows would measure memory.
    Every label keeps a row, also where rows have several labels. Nothing may be left to hold out.
    """
    by_text: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, texts in enumerate(rows.texts):
        by_text[texts].append(position)
    strata: dict[object, list[list[int]]] = defaultdict(list)
    for positions in by_text.values():
        strata[rows.labels[positions[0]] if kind == "single_label" else None].append(positions)
    left = Counter(label for group in by_text.values() for label in _labels_of(rows, group, kind))
    held: set[int] = set()
    rng = random.Random(seed)
    for _, groups in sorted(strata.items(), key=lambda item: str(item[0])):
        rng.shuffle(groups)
        most = len(groups) - 1
        count = min(most, max(1, round(fraction * len(groups))))
        for group in groups:
            labels = _labels_of(rows, group, kind)
            if count and all(left[label] > 1 for label in labels):
                held.update(group)
                left.subtract(labels)
                count -= 1
    kept = rows.take(position for position in range(len(rows)) if position not in held)
    return kept, rows.take(sorted(held))


def _labels_of(rows: Rows, group: Iterable[int], kind: TaskKind) -> set[object]:
    """Return the codes of the labels that a group of rows has; regression has none."""
    labels = [rows.labels[position] for position in group]
    if kind == "single_label":
        return set(labels)
    lists = [label for label in labels if isinstance(label, list)]
    return {code for label in lists for code, is_set in enumerate(label) if is_set}


def digest_rows(splits: Mapping[str, Rows]) -> str:
    """Return the SHA-256 of split names, texts and labels, in order, as manifests store it."""
    state = hashlib.sha256()
    for split, rows in splits.items():
        state.update(f"{split} {len(rows)}\n".encode())
        for texts, label in zip(rows.texts, rows.labels, strict=True):
            line = json.dumps([texts, label], ensure_ascii=True, separators=(",", ":"))
            state.update(line.encode() + b"\n")
    return state.hexdigest()
