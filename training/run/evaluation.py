"""How a model answers and how good its answers are. Legend: R rows, C head outputs.

The metrics that tasks are judged by, on top of scikit-learn and scipy.

A degenerate run (every answer the same, a single row, a diverged run) gets the value that such
answers deserve, 0.0 where a definition divides by zero, and never NaN or a warning: sweeps rank
runs by these numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from deltas.backbone.tokenizer import TokenizedRow
from deltas.manifest import LabelMetrics, SplitMetrics
from training.data.tasks import Task
from training.errors import ConfigError, listing
from training.run import distributed
from training.run.task_model import Split, TaskModel, task_loss

Numbers = NDArray[Any]

# What a diverged run's error is; 0.0 would be the best one there is.
_WORST_ERROR = float(np.finfo(np.float32).max)


def _accuracy(predictions: Numbers, references: Numbers) -> float:
    # For multi-label rows this is the share of rows in which every label is right.
    return float(sklearn_metrics.accuracy_score(references, predictions))


def _f1(predictions: Numbers, references: Numbers) -> float:
    # The positive class is code 1, as in GLUE's own scorer.
    return float(sklearn_metrics.f1_score(references, predictions, pos_label=1, zero_division=0.0))


def _average_f1(average: str, predictions: Numbers, references: Numbers) -> float:
    if references.ndim == 2 and references.shape[1] == 1:
        # One label that a row has or hasn't; scikit-learn would take it for two classes.
        return _f1(predictions[:, 0], references[:, 0])
    score = sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0.0)
    return float(score)


def _macro_f1(predictions: Numbers, references: Numbers) -> float:
    return _average_f1("macro", predictions, references)


def _micro_f1(predictions: Numbers, references: Numbers) -> float:
    return _average_f1("micro", predictions, references)


def _matthews(predictions: Numbers, references: Numbers) -> float:
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def _correlation(correlate: Callable[..., Any], predictions: Numbers, references: Numbers) -> float:
    if len(predictions) < 2 or not np.isfinite(predictions).all():
        return 0.0
    return float(correlate(predictions, references).statistic)


def _pearson(predictions: Numbers, references: Numbers) -> float:
    return _correlation(stats.pearsonr, predictions, references)


def _spearman(predictions: Numbers, references: Numbers) -> float:
    return _correlation(stats.spearmanr, predictions, references)


def _mse(predictions: Numbers, references: Numbers) -> float:
    error = np.mean(np.square(predictions.astype(np.float64) - references))
    return float(error) if np.isfinite(error) else _WORST_ERROR


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "mse": _mse,
}


def compute_metrics(
    names: Sequence[str], predictions: Numbers, references: Numbers
) -> dict[str, float]:
    """Judge predictions against references.

    Args:
        names: keys of `METRICS`.
        predictions: int [N] label codes, float [N] values, or int [N, C] of 0 and 1 for multi-label
            tasks.
        references: same shape.

    Returns:
        One finite number a name, in the order of `names`.

    Raises:
        ConfigError: a name is unknown, the shapes differ, or there are no rows.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(f"unknown metric {unknown[0]!r}; available: {listing(METRICS)}")
    if predictions.shape != references.shape or len(references) == 0:
        raise ConfigError(
            f"predictions of shape {predictions.shape} can't be judged against references of shape "
            f"{references.shape}: both need the same shape and at least one row"
        )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        values = {name: METRICS[name](predictions, references) for name in names}
    return {name: value if np.isfinite(value) else 0.0 for name, value in values.items()}


def metrics_by_label(
    labels: Sequence[str], predictions: Numbers, references: Numbers
) -> dict[str, tuple[int, float, float, float]]:
    """Rows, precision, recall and F1 of each label.

    Args:
        labels: names in the order of their codes.
        predictions: int [N] label codes, or int [N, C] of 0 and 1.
        references: same shape.
    """
    codes = range(len(labels))
    precision, recall, f1, rows = sklearn_metrics.precision_recall_fscore_support(
        references, predictions, labels=list(codes), zero_division=0.0
    )
    return {
        label: (int(rows[code]), float(precision[code]), float(recall[code]), float(f1[code]))
        for code, label in enumerate(labels)
    }


_EVAL_TOKENS = 4096
_SCALE_FLOOR = 1e-3


@torch.no_grad()
def pooled_scale(model: TaskModel, rows: Sequence[TokenizedRow]) -> float:
    """Root mean square of the pooled output of some rows, before training.

    It differs tenfold between backbones (0.07 on all-MiniLM-L6-v2, whose pooler was never trained
    with the rest), and with it how fast a head's answers move at a given learning rate.
    """
    return max(_SCALE_FLOOR, float(model.pooled(rows).square().mean().sqrt()))


@torch.no_grad()
def predict(model: TaskModel, rows: Sequence[TokenizedRow]) -> Tensor:
    """Float32 logits [R, C] for any number of rows, computed in packed batches of bounded size.

    Several processes share the rows; each gets all answers.
    """
    answers = torch.zeros(len(rows), len(model.head_bias))
    for positions in distributed.shard(list(_parts(rows))):
        answers[positions] = model.logits([rows[index] for index in positions]).cpu()
    return distributed.all_reduce(answers)


def _parts(rows: Sequence[TokenizedRow]) -> Iterator[list[int]]:
    part: list[int] = []
    tokens = 0
    for position in sorted(range(len(rows)), key=lambda index: rows[index].num_tokens):
        if part and tokens + rows[position].num_tokens > _EVAL_TOKENS:
            yield part
            part, tokens = [], 0
        part.append(position)
        tokens += rows[position].num_tokens
    yield part


def evaluate(
    model: TaskModel, task: Task, split: Split, *, with_loss: bool = False
) -> dict[str, float]:
    """The task's metrics on a split, and "loss" if asked for."""
    logits = predict(model, split.rows)
    decided = decisions(task.kind, logits.numpy())
    metrics = compute_metrics(task.metrics, decided, split.labels.numpy())
    if with_loss:
        metrics["loss"] = float(task_loss(task.kind, logits, split.labels, model.scale))
    return metrics


def score_split(
    model: TaskModel, task: Task, split: Split, note: str, *, labels: bool
) -> SplitMetrics:
    """What the manifest says about a split; with `labels` also about each label."""
    logits = predict(model, split.rows)
    decided, wanted = decisions(task.kind, logits.numpy()), split.labels.numpy()
    by_label = metrics_by_label(task.labels, decided, wanted) if labels and task.labels else {}
    return SplitMetrics(
        rows=len(split.rows),
        values=compute_metrics(task.metrics, decided, wanted),
        note=note,
        by_label={
            label: LabelMetrics(rows=rows, precision=precision, recall=recall, f1=f1)
            for label, (rows, precision, recall, f1) in by_label.items()
        },
    )


def decisions(kind: str, logits: NDArray[Any]) -> NDArray[Any]:
    """What metrics compare: label codes [R], values [R], or 0/1 [R, C]."""
    if kind == "single_label":
        codes: NDArray[Any] = logits.argmax(axis=1)
        return codes
    if kind == "multi_label":
        return (logits >= 0).astype(np.int64)
    return logits[:, 0]
