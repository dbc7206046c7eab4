"""From logits to the predictions of a response: pure functions, one case a kind of task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from app.errors import BadResultError
from app.pipeline import RowLogits
from app.schemas import LabelPrediction, LabelsPrediction, Prediction, ValuePrediction
from deltas import TaskSpec, task_scores

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
    scores = task_scores(task.kind, torch.tensor([row.logits for row in rows])).tolist()
    return [
        _prediction(task, values, row.truncated, top_k)
        for values, row in zip(scores, rows, strict=True)
    ]


def _prediction(
    task: TaskSpec, values: list[float], truncated: bool, top_k: int | None
) -> Prediction:
    if task.kind == "regression":
        return ValuePrediction(value=values[0], truncated=truncated)
    by_label = dict(zip(task.labels, values, strict=True))
    best_first = sorted(by_label, key=by_label.__getitem__, reverse=True)
    shown = by_label if top_k is None else {name: by_label[name] for name in best_first[:top_k]}
    if task.kind == "multi_label":
        chosen = [name for name in task.labels if by_label[name] >= THRESHOLD]
        return LabelsPrediction(labels=chosen, scores=shown, truncated=truncated)
    best = best_first[0]
    return LabelPrediction(label=best, score=by_label[best], scores=shown, truncated=truncated)
