"""How a trainee answers and how good its answers are. Legend: R rows, C head outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltas.manifest import LabelMetrics, SplitMetrics
from deltas.rows import TokenizedRow
from training import processes
from training.losses import task_loss
from training.metrics import compute_metrics, metrics_by_label
from training.tasks import Task
from training.trainee import Split, Trainee

_EVAL_TOKENS = 4096
_SCALE_FLOOR = 1e-3


@torch.no_grad()
def pooled_scale(trainee: Trainee, rows: Sequence[TokenizedRow]) -> float:
    """Root mean square of the pooled output of some rows, before training.

    It differs tenfold between backbones (0.07 on all-MiniLM-L6-v2, whose pooler was never trained
    with the rest), and with it how fast a head's answers move at a given learning rate.
    """
    return max(_SCALE_FLOOR, float(trainee.pooled(rows).square().mean().sqrt()))


@torch.no_grad()
def predict(trainee: Trainee, rows: Sequence[TokenizedRow]) -> Tensor:
    """Float32 logits [R, C] for any number of rows, computed in packed batches of bounded size.

    Several processes share the rows; each gets all answers.
    """
    answers = torch.zeros(len(rows), len(trainee.head_bias))
    for positions in processes.share(list(_parts(rows))):
        answers[positions] = trainee.logits([rows[index] for index in positions]).cpu()
    return processes.add_up(answers)


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
    trainee: Trainee, task: Task, split: Split, *, with_loss: bool = False
) -> dict[str, float]:
    """The task's metrics on a split, and "loss" if asked for."""
    logits = predict(trainee, split.rows)
    decided = decisions(task.kind, logits.numpy())
    metrics = compute_metrics(task.metrics, decided, split.labels.numpy())
    if with_loss:
        metrics["loss"] = float(task_loss(task.kind, logits, split.labels, trainee.scale))
    return metrics


def judge(trainee: Trainee, task: Task, split: Split, note: str, *, labels: bool) -> SplitMetrics:
    """What the manifest says about a split; with `labels` also about each label."""
    logits = predict(trainee, split.rows)
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
