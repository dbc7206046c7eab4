"""From logits to the predictions of a response: pure functions, one case a kind of task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.errors import BadResultError
from app.http.schemas import LabelPrediction, LabelsPrediction, Prediction, ValuePrediction
from app.pipeline import RowLogits
from deltas import TaskSpec
from deltas.manifest import TaskKind

THRESHOLD = 0.5  # of a multi-label task's labels


def to_predictions(
    task: TaskSpec, rows: Sequence[RowLogits], top_k: int | None
) -> list[Prediction]:
    """Turn a task's rows of logits into predictions.

    Args:
        task: kind and labels.
        rows: the engine's answers.
        top_k: how many scores to give, best first; None gives all in the order of the labels.

    Raises:
        BadResultError: a row has not as many logits as the task has outputs, or not finite ones.
    """
    for position, row in enumerate(rows):
        if len(row.logits) != task.num_outputs or not all(map(math.isfinite, row.logits)):
            raise BadResultError(
                f"row {position} of {task.name!r}: the engine gave {row.logits[:8]} "
                f"for {task.num_outputs} outputs"
            )
    return [_prediction(task, row.logits, row.truncated, top_k) for row in rows]


def _prediction(
    task: TaskSpec, logits: Sequence[float], truncated: bool, top_k: int | None
) -> Prediction:
    if task.kind == "regression":
        return ValuePrediction(value=logits[0], truncated=truncated)
    by_label = dict(zip(task.labels, scores_of(task.kind, logits), strict=True))
    shown = by_label
    if top_k is not None:
        best_first = sorted(by_label, key=by_label.__getitem__, reverse=True)
        shown = {name: by_label[name] for name in best_first[:top_k]}
    if task.kind == "multi_label":
        chosen = [name for name in task.labels if by_label[name] >= THRESHOLD]
        return LabelsPrediction(labels=chosen, scores=shown, truncated=truncated)
    best = max(by_label, key=by_label.__getitem__)
    return LabelPrediction(label=best, score=by_label[best], scores=shown, truncated=truncated)


def scores_of(kind: TaskKind, logits: Sequence[float]) -> list[float]:
    """What `deltas.task_scores` gives for one row of a task with labels, without tensors.

    A tensor of two numbers costs more time than everything else in here.
    """
    if kind == "multi_label":
        return [_sigmoid(logit) for logit in logits]
    most = max(logits)
    powers = [math.exp(logit - most) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)
