"""Counts what the rows of a run are: splits, labels, repeated and contradicting texts, tokens.

Each text is kept as a hash of itself, so that hundreds of thousands of rows take seconds and little
memory. `training.run.plan.oddities` judges the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltas.backbone.tokenizer import TokenizedRow
from training.data.rows import Rows
from training.data.tasks import Task
from training.run.evaluation import compute_metrics

TRAIN, SELECTION = "train", "selection"
_MANY = 2000  # sampled rows where an estimate does
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Contradiction:
    """Two rows with equal texts and different labels, by their row numbers."""

    rows: tuple[int, int]
    labels: tuple[str, str]


@dataclass(frozen=True)
class RepeatFacts:
    """Equal texts; texts are equal if they differ in case and white space only."""

    repeated: int  # train and selection rows whose texts an earlier one of them has
    contradicting: int  # train and selection rows whose texts have another label elsewhere
    example: Contradiction | None
    shared: dict[str, int]  # by split, rows whose texts are also among the train rows


@dataclass(frozen=True)
class TokenFacts:
    """Lengths of rows in tokens, after the cut at `limit`."""

    limit: int
    percentiles: dict[int, int]  # of the train rows: 50 is the median
    longest: int
    per_word: float  # tokens of the train texts, by their words between blanks
    cut: dict[str, float]  # by split, the share of rows that are cut


@dataclass(frozen=True)
class Baseline:
    """The metrics of always giving one answer, the best that ignores the texts."""

    answer: str  # a label, or a number
    metrics: dict[str, dict[str, float]]  # by split


@dataclass(frozen=True)
class RunFacts:
    """Everything that is counted of a run's rows."""

    task: Task
    rows: dict[str, int]  # by split: train, selection and the validation splits
    labels: dict[str, int]  # train rows of each label, most frequent first; {} for regression
    value_range: tuple[float, float] | None  # of a regression's train rows
    repeats: RepeatFacts
    blank: dict[str, int]  # by split, rows in which a text is empty
    tokens: TokenFacts
    baseline: Baseline


def count_facts(
    task: Task,
    splits: Mapping[str, Rows],
    tokenized: Mapping[str, Sequence[TokenizedRow]],
    limit: int,
) -> RunFacts:
    """Count the facts of a run.

    Args:
        task: the task of the rows.
        splits: the rows by split; "train" and "selection" come first, then validation splits.
        tokenized: the same rows tokenized, of validation splits some rows at least.
        limit: the number of tokens at which rows are cut.
    """
    train = splits[TRAIN]
    values = np.asarray(train.labels, dtype=np.float64)
    is_number = task.kind == "regression"
    return RunFacts(
        task=task,
        rows={split: len(rows) for split, rows in splits.items()},
        labels=label_counts(task, train),
        value_range=(float(values.min()), float(values.max())) if is_number else None,
        repeats=count_repeats(task, splits),
        blank={
            split: sum(not all(map(str.strip, texts)) for texts in rows.texts)
            for split, rows in splits.items()
        },
        tokens=_count_tokens(train, tokenized, limit),
        baseline=constant_answer(task, splits),
    )


def label_counts(task: Task, rows: Rows) -> dict[str, int]:
    """Return the number of rows of each label, most frequent first; {} for a regression."""
    if task.kind == "regression":
        return {}
    codes = np.asarray(rows.labels, dtype=np.int64)
    counts = codes.sum(0) if codes.ndim == 2 else np.bincount(codes, minlength=len(task.labels))
    named = {label: int(count) for label, count in zip(task.labels, counts, strict=True)}
    return dict(sorted(named.items(), key=lambda item: -item[1]))


def count_repeats(task: Task, splits: Mapping[str, Rows]) -> RepeatFacts:
    """Count rows with equal texts, within the rows that the run learns from and across splits."""
    first: dict[int, tuple[str, int]] = {}  # split and position of the first row with each text
    repeated, contradicted, example = 0, set(), None
    keys = {split: list(map(_key, rows.texts)) for split, rows in splits.items()}
    learnt = [split for split in (TRAIN, SELECTION) if split in splits]
    rows_of: Counter[int] = Counter()
    for split in learnt:
        rows = splits[split]
        rows_of.update(keys[split])
        for position, key in enumerate(keys[split]):
            place = split, position
            other, earlier = first.setdefault(key, place)
            if (other, earlier) == place:
                continue
            repeated += 1
            if rows.labels[position] != splits[other].labels[earlier]:
                contradicted.add(key)
                pair = (splits[other], earlier), (rows, position)
                example = example or _contradiction(task, *pair)
    seen = set(keys[TRAIN])
    return RepeatFacts(
        repeated=repeated,
        contradicting=sum(rows_of[key] for key in contradicted),
        example=example,
        shared={
            split: sum(key in seen for key in found)
            for split, found in keys.items()
            if split != TRAIN
        },
    )


def _key(texts: Sequence[str]) -> int:
    return hash(tuple(" ".join(text.casefold().split()) for text in texts))


def _contradiction(task: Task, *places: tuple[Rows, int]) -> Contradiction:
    (one, first), (other, second) = sorted(places, key=lambda place: place[0].number(place[1]))
    return Contradiction(
        (one.number(first), other.number(second)),
        (label_text(task, one.labels[first]), label_text(task, other.labels[second])),
    )


def label_text(task: Task, label: Any) -> str:
    """Return a row's label for people: its name, its names joined by "|", or its number."""
    if task.kind == "regression":
        return f"{label:g}"
    if task.kind == "multi_label":
        names = [name for name, is_set in zip(task.labels, label, strict=True) if is_set]
        return "|".join(names) or "none"
    name: str = task.labels[label]
    return name


def _count_tokens(
    train: Rows, tokenized: Mapping[str, Sequence[TokenizedRow]], limit: int
) -> TokenFacts:
    lengths = [row.num_tokens for row in tokenized[TRAIN]]
    found = np.percentile(lengths, _PERCENTILES, method="higher")
    tokens = words = 0
    for position in sampled(len(train)):
        row, texts = tokenized[TRAIN][position], train.texts[position]
        if not row.truncated:
            tokens += row.num_tokens - len(row.sequences) - len(texts)
            words += sum(len(text.split()) for text in texts)
    return TokenFacts(
        limit=limit,
        percentiles={part: int(value) for part, value in zip(_PERCENTILES, found, strict=True)},
        longest=max(lengths),
        per_word=tokens / max(1, words),
        cut={
            split: sum(row.truncated for row in rows) / len(rows)
            for split, rows in tokenized.items()
            if rows
        },
    )


def constant_answer(task: Task, splits: Mapping[str, Rows]) -> Baseline:
    """Score the answer that is best without reading the texts, on all rows not trained on.

    That is the most frequent label, or the mean of a regression.
    """
    train = splits[TRAIN]
    if task.kind == "regression":
        mean = float(np.mean(np.asarray(train.labels, dtype=np.float64)))
        answer = f"{mean:.4g}"
        row: NDArray[Any] = np.asarray(mean)
    else:
        answer = next(iter(label_counts(task, train)))
        code = task.labels.index(answer)
        row = np.asarray(code)
        if task.kind == "multi_label":
            row = np.eye(len(task.labels), dtype=np.int64)[code]
    metrics = {}
    for split, rows in splits.items():
        if split != TRAIN and len(rows):
            references: NDArray[Any] = np.asarray(rows.labels)
            predictions = np.broadcast_to(row, references.shape)
            metrics[split] = compute_metrics(task.metrics, predictions, references)
    return Baseline(answer, metrics)


def sampled(count: int) -> range:
    """Return at most 2,000 of `count` positions, spread evenly."""
    return range(0, count, max(1, -(-count // _MANY)))
