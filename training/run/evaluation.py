"""Predictions of a model and the metrics of these predictions.

The metrics are scikit-learn's and scipy's, except for degenerate answers: if all answers are equal,
there is a single row, or the run diverged, a metric is 0.0 (a very large number for an error) and
never NaN or a warning, because sweeps rank runs by these numbers. Called by `training.run.loop`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from deltas.backbone.tokenizer import TokenizedRow
from deltas.manifest import Calibration, DecisionRule, LabelMetrics, SplitMetrics
from training.data.tasks import Task
from training.errors import ConfigError, listing
from training.run import distributed
from training.run.head.calibration import (
    calibrated,
    calibrated_head,
    fit_calibration,
    uncalibrated,
)
from training.run.head.reliability import reliability
from training.run.head.thresholds import fit_decision
from training.run.loop.schedule import length_batches
from training.run.task_model import Model, Split, TaskModel, task_loss

Numbers = NDArray[Any]

_BATCH_TOKENS = 4096
_SCALE_FLOOR = 1e-3
# Error of a diverged run; 0.0 would be the best error there is.
_WORST_ERROR = float(np.finfo(np.float32).max)


def _score(score: Callable[..., Any], predictions: Numbers, references: Numbers) -> float:
    return float(score(references, predictions))


def _f1(average: str, predictions: Numbers, references: Numbers) -> float:
    if references.ndim == 2 and references.shape[1] == 1:
        # scikit-learn would take a single column of 0 and 1 for two classes.
        predictions, references, average = predictions[:, 0], references[:, 0], "binary"
    score = sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0.0)
    return float(score)


def _correlation(correlate: Callable[..., Any], predictions: Numbers, references: Numbers) -> float:
    if len(predictions) < 2 or not np.isfinite(predictions).all():
        return 0.0
    return float(correlate(predictions, references).statistic)


def _mse(predictions: Numbers, references: Numbers) -> float:
    error = np.mean(np.square(predictions.astype(np.float64) - references))
    return float(error) if np.isfinite(error) else _WORST_ERROR


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    # For multi-label rows this is the share of rows in which every label is right.
    "accuracy": partial(_score, sklearn_metrics.accuracy_score),
    "f1": partial(_f1, "binary"),  # of code 1, as in GLUE's own scorer
    "macro_f1": partial(_f1, "macro"),
    "micro_f1": partial(_f1, "micro"),
    "matthews": partial(_score, sklearn_metrics.matthews_corrcoef),
    "pearson": partial(_correlation, stats.pearsonr),
    "spearman": partial(_correlation, stats.spearmanr),
    "mse": _mse,
}


def compute_metrics(
    names: Sequence[str], predictions: Numbers, references: Numbers
) -> dict[str, float]:
    """Compute a finite number for each name in `METRICS`, in the given order.

    The predictions are answers as `decisions` returns them, the references have the same shape.

    Raises:
        ConfigError: a name is unknown, the shapes differ, or there are no rows.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(f"unknown metric {unknown[0]!r}; available: {listing(METRICS)}")
    if predictions.shape != references.shape or len(references) == 0:
        raise ConfigError(
            f"can't compare predictions of shape {predictions.shape} with references of shape "
            f"{references.shape}: both need the same shape and at least one row"
        )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        values = {name: METRICS[name](predictions, references) for name in names}
    return {name: value if np.isfinite(value) else 0.0 for name, value in values.items()}


def metrics_by_label(
    labels: Sequence[str], predictions: Numbers, references: Numbers
) -> dict[str, LabelMetrics]:
    """Compute rows, precision, recall and F1 of each label; labels are in the order of codes."""
    columns = sklearn_metrics.precision_recall_fscore_support(
        references, predictions, labels=list(range(len(labels))), zero_division=0.0
    )
    return {
        label: LabelMetrics(
            rows=int(rows), precision=float(precision), recall=float(recall), f1=float(f1)
        )
        for label, precision, recall, f1, rows in zip(labels, *columns, strict=True)
    }


@torch.no_grad()
def pooled_scale(model: TaskModel, rows: Sequence[TokenizedRow]) -> float:
    """Return the root mean square of some rows' features, the head's input, before training.

    It differs tenfold between backbones (0.07 on all-MiniLM-L6-v2, whose pooler was never trained
    with the rest), and decides how fast a head's answers move at a given learning rate.
    """
    return max(_SCALE_FLOOR, float(model.features(rows).square().mean().sqrt()))


@torch.no_grad()
def features(model: TaskModel, rows: Sequence[TokenizedRow]) -> Tensor:
    """Return the head's input, float32 [R, I] on the CPU, of any number of rows.

    Several processes share the work, as in `predict`.
    """
    found = torch.zeros(len(rows), model.head[0].shape[1])
    for positions in distributed.shard(list(length_batches(rows, _BATCH_TOKENS))):
        found[positions] = model.features([rows[index] for index in positions]).cpu()
    return distributed.all_reduce(found)


@torch.no_grad()
def predict(model: Model, rows: Sequence[TokenizedRow]) -> Tensor:
    """Return float32 logits [R, C] of any number of rows, computed in packed batches.

    Several processes share the work; each of them gets the logits of all rows.
    """
    answers = torch.zeros(len(rows), len(model.head[1]))
    for positions in distributed.shard(list(length_batches(rows, _BATCH_TOKENS))):
        answers[positions] = model.logits([rows[index] for index in positions]).cpu()
    return distributed.all_reduce(answers)


def evaluate(model: TaskModel, task: Task, split: Split) -> dict[str, float]:
    """Return the task's metrics on a split, and "loss", its mean loss."""
    logits = predict(model, split.rows)
    predictions = decisions(task.kind, logits.numpy())
    metrics = compute_metrics(task.metrics, predictions, split.labels.numpy())
    return metrics | {"loss": float(task_loss(task.kind, logits, split.labels, model.scale))}


def primary_score(task: Task, logits: Tensor, labels: Tensor) -> float:
    """Return the primary metric of logits [R, C] without thresholds."""
    names, predictions = [task.primary_metric], decisions(task.kind, logits.numpy())
    return compute_metrics(names, predictions, labels.numpy())[task.primary_metric]


@dataclass(frozen=True)
class Decided:
    """Calibration and decision rule of a run, fitted on its selection rows."""

    calibration: Calibration | None
    rule: DecisionRule | None


def calibrate(
    model: Model, task: Task, split: Split, *, target: str | None, coverage: float | None
) -> tuple[Decided, Tensor, list[str]]:
    """Calibrate the model's head, and choose thresholds and limit, on the selection rows.

    Returns the result, the calibrated logits [R, C] of the rows, and notes for the user.
    """
    logits, labels = predict(model, split.rows), split.labels.numpy()
    calibration = fit_calibration(task.kind, logits.numpy(), labels)
    calibrate_head(model, calibration)
    logits = torch.from_numpy(calibrated(logits.numpy(), calibration))
    rule, notes = fit_decision(task.kind, logits.numpy(), target=target, coverage=coverage)
    return Decided(calibration, rule), logits, notes


@torch.no_grad()
def calibrate_head(model: Model, calibration: Calibration | None) -> None:
    """Multiply a calibration into the model's head."""
    for part, value in zip(model.head, calibrated_head(model.head, calibration), strict=True):
        part.copy_(value)


def score_split(
    logits: Tensor, task: Task, labels: Tensor, note: str, decided: Decided, *, by_label: bool
) -> SplitMetrics:
    """Return the manifest's metrics of a split, with `by_label` also those of each label.

    `logits` are those of the calibrated head. The metrics are those of the labels that a server
    gives. Multi-label metrics with one half as every threshold end in "_at_half"; with a limit,
    "coverage" is the share of rows that get an answer, "answered_accuracy" the accuracy of these.
    """
    numbers, references = logits.numpy(), labels.numpy()
    predictions = decisions(task.kind, numbers, decided.rule)
    values = compute_metrics(task.metrics, predictions, references)
    rule, known = decided.rule, task.kind != "regression" and bool(np.isfinite(numbers).all())
    if rule is not None and rule.thresholds:
        plain = compute_metrics(task.metrics, decisions(task.kind, numbers), references)
        values |= {f"{name}_at_half": value for name, value in plain.items()}
    if rule is not None and rule.limit is not None:
        answered = np.array([rule.answers(row) for row in numbers.tolist()])
        right = (predictions == references)[answered]
        values["coverage"] = float(answered.mean())
        values["answered_accuracy"] = float(right.mean()) if len(right) else 0.0
    before = uncalibrated(numbers, decided.calibration)
    names = task.labels if by_label else ()
    return SplitMetrics(
        rows=len(numbers),
        values=values,
        note=note,
        by_label=metrics_by_label(names, predictions, references) if names else {},
        reliability=reliability(task.kind, numbers, before, references) if known else None,
    )


def decisions(kind: str, logits: Numbers, rule: DecisionRule | None = None) -> Numbers:
    """Turn logits [R, C] into predictions: label codes [R], values [R], or 0/1 [R, C]."""
    if kind == "single_label":
        codes: Numbers = logits.argmax(axis=1)
        return codes
    if kind == "multi_label":
        if rule is None or not rule.thresholds:
            return (logits >= 0).astype(np.int64)
        given: Numbers = expit(logits.astype(np.float64)) >= np.array(rule.thresholds)
        return given.astype(np.int64)
    return logits[:, 0]
