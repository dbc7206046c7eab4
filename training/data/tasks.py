"""The nine GLUE tasks as a table, exactly as `nyu-mll/glue` on the Hugging Face hub has them.

A label's position in `labels` is its code in the data and its output in the head. Another order
would silently permute answers, so a test compares this table with real rows. Rows come from
`training.data.glue`; tasks that users define are made in `training.data.custom`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training.errors import TaskError

if TYPE_CHECKING:
    from deltas.manifest import TaskKind


@dataclass(frozen=True)
class Task:
    """A text-classification task: the form of its rows, its labels and its metrics.

    The first metric is the primary one; the first validation split stands for the task.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...]  # in the order of their codes; empty for regression
    text_fields: tuple[str, ...]  # one or two column names
    metrics: tuple[str, ...]  # names that `training.run.evaluation` knows
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ("validation",)  # evaluated, never trained on
    value_range: tuple[float, float] | None = None  # of regression; None for any finite number
    # Rows of each split in the published data set, so that a part of it can be recognised.
    canonical_rows: dict[str, int] = field(default_factory=dict)

    @property
    def primary_metric(self) -> str:
        """The metric that selects the best state and stands for the task in tables."""
        return self.metrics[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits, the train split first."""
        return (self.train_split, *self.validation_splits)


def _glue(name: str, labels: str, text_fields: str, metrics: str, **rows: int) -> Task:
    return Task(
        name=name,
        kind="single_label" if labels else "regression",
        labels=tuple(labels.split()),
        text_fields=tuple(text_fields.split()),
        metrics=tuple(metrics.split()),
        validation_splits=tuple(split for split in rows if split != "train"),
        value_range=None if labels else (0.0, 5.0),
        canonical_rows=rows,
    )


_ENTAILMENT, _PAIR = "entailment not_entailment", "sentence1 sentence2"
# GLUE averages accuracy and F1 for MRPC and QQP. Accuracy comes first here because it is defined
# the same for every task with labels, so that one sweep can rank runs of all of them.
_BOTH = "accuracy f1"
_QUESTIONS, _PREMISE = "question1 question2", "premise hypothesis"
_MNLI = {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832}
_GLUE = (
    _glue("cola", "unacceptable acceptable", "sentence", "matthews", train=8551, validation=1043),
    _glue("sst2", "negative positive", "sentence", "accuracy", train=67349, validation=872),
    _glue("mrpc", "not_equivalent equivalent", _PAIR, _BOTH, train=3668, validation=408),
    _glue("stsb", "", _PAIR, "pearson spearman", train=5749, validation=1500),
    _glue("qqp", "not_duplicate duplicate", _QUESTIONS, _BOTH, train=363846, validation=40430),
    _glue("mnli", "entailment neutral contradiction", _PREMISE, "accuracy", **_MNLI),
    _glue("qnli", _ENTAILMENT, "question sentence", "accuracy", train=104743, validation=5463),
    _glue("rte", _ENTAILMENT, _PAIR, "accuracy", train=2490, validation=277),
    _glue("wnli", "not_entailment entailment", _PAIR, "accuracy", train=635, validation=71),
)
TASKS = {task.name: task for task in _GLUE}


def find_task(name: str) -> Task:
    """Return the GLUE task of that name.

    Raises:
        TaskError: no task has the name; lists near matches and all tasks.
    """
    if name not in TASKS:
        raise TaskError(name, TASKS)
    return TASKS[name]
