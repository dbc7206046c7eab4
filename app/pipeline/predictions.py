"""Turns the logits of rows into the predictions of a response, for each kind of task.

The head gives calibrated logits; `deltas.manifest.DecisionRule` says what they decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from app.errors import BadResultError
from app.pipeline.pipeline import RowLogits
from deltas import Record, TaskSpec
from deltas.manifest import DecisionRule, TaskKind

_PLAIN = DecisionRule()  # of deltas without a rule: thresholds of one half, always an answer
_THRESHOLD = 0.5


class _Prediction(BaseModel):
    model_config = ConfigDict(frozen=True)


class LabelPrediction(_Prediction):
    """Answer to one row of a single-label task."""

    label: str
    decision: Annotated[
        str | None,
        Field(description="The label, or null if the delta's limit of confidence is not reached."),
    ]
    score: Annotated[float, Field(description="Probability of the label.")]
    scores: Annotated[
        dict[str, float], Field(description="Probability by label; the probabilities sum to 1.")
    ]
    truncated: Annotated[bool, Field(description="True if text was cut to max_length.")]


class LabelsPrediction(_Prediction):
    """Answer to one row of a multi-label task."""

    labels: Annotated[
        list[str],
        Field(description="Labels that reach their threshold: 0.5, or the delta's own."),
    ]
    decision: Annotated[list[str], Field(description="The same as `labels`.")]
    scores: Annotated[dict[str, float], Field(description="Probability of each label by itself.")]
    truncated: bool


class ValuePrediction(_Prediction):
    """Answer to one row of a regression task."""

    value: float
    decision: Annotated[float, Field(description="The same as `value`.")]
    truncated: bool


Prediction: TypeAlias = LabelPrediction | LabelsPrediction | ValuePrediction


class TargetPredictions(_Prediction):
    """Answers of one delta, in the order of the rows."""

    task: str
    strategy: str
    version: str
    kind: TaskKind
    predictions: list[Prediction]


def answer_of(record: Record, rows: Sequence[RowLogits], top_k: int | None) -> TargetPredictions:
    """Return the part of a response that one delta gives."""
    task, strategy = record.manifest.key
    return TargetPredictions(
        task=task,
        strategy=strategy,
        version=record.version,
        kind=record.manifest.task.kind,
        predictions=to_predictions(record.manifest.task, rows, top_k, record.manifest.decision),
    )


def to_predictions(
    task: TaskSpec, rows: Sequence[RowLogits], top_k: int | None, rule: DecisionRule | None = None
) -> list[Prediction]:
    """Return the prediction of each row.

    Args:
        task: task with its kind and labels.
        rows: logits of each row.
        top_k: number of scores to give, best first; None gives all in the order of the labels.
        rule: the delta's thresholds, or its limit; None for one half, and for an answer always.

    Raises:
        BadResultError: logits of a row are not finite, or not as many as the task has outputs.
    """
    for position, row in enumerate(rows):
        if len(row.logits) != task.num_outputs or not all(map(math.isfinite, row.logits)):
            raise BadResultError(
                f"row {position} of {task.name!r}: the engine gave {row.logits[:8]} "
                f"for {task.num_outputs} outputs"
            )
    rule = rule or _PLAIN
    return [_prediction(task, row.logits, row.truncated, top_k, rule) for row in rows]


def _prediction(
    task: TaskSpec,
    logits: Sequence[float],
    truncated: bool,
    top_k: int | None,
    rule: DecisionRule,
) -> Prediction:
    if task.kind == "regression":
        return ValuePrediction(value=logits[0], decision=logits[0], truncated=truncated)
    by_label = dict(zip(task.labels, scores_of(task.kind, logits), strict=True))
    shown = by_label
    if top_k is not None:
        best_first = sorted(by_label, key=by_label.__getitem__, reverse=True)
        shown = {name: by_label[name] for name in best_first[:top_k]}
    if task.kind == "multi_label":
        thresholds = rule.thresholds or (_THRESHOLD,) * len(task.labels)
        chosen = [
            name
            for name, threshold in zip(task.labels, thresholds, strict=True)
            if by_label[name] >= threshold
        ]
        return LabelsPrediction(labels=chosen, decision=chosen, scores=shown, truncated=truncated)
    best = max(by_label, key=by_label.__getitem__)
    return LabelPrediction(
        label=best,
        decision=best if rule.answers(logits) else None,
        score=by_label[best],
        scores=shown,
        truncated=truncated,
    )


def scores_of(kind: TaskKind, logits: Sequence[float]) -> list[float]:
    """Return the scores of a row like `deltas.task_scores`, without tensors.

    A tensor of two numbers takes more time than all other work of this module.
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
