"""What training makes small: cross entropy, binary cross entropies, or squared error.

Losses are sums, divided by what the whole step's rows weigh together, so that a step gives the same
gradient in one batch, in several one after the other, or spread over processes. Legend: R rows, C
head outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_weights(kind: str, labels: Tensor, num_labels: int) -> Tensor:
    """Weights that let each label of a train set count alike.

    Args:
        kind: "single_label" or "multi_label".
        labels: int64 [R], or float32 [R, C] of 0 and 1.
        num_labels: C.

    Returns:
        float32 [C]. Single label: R / (C x rows of the label). Multi label: rows without it / rows
        with it, by which its presence counts more.
    """
    if kind == "multi_label":
        present = labels.sum(0)
        return ((len(labels) - present) / present.clamp(min=1)).clamp(min=1e-3).float()
    counts = torch.bincount(labels, minlength=num_labels)
    return (len(labels) / (num_labels * counts.clamp(min=1))).float()


def total_weight(kind: str, labels: Tensor, weights: Tensor | None = None) -> float:
    """What the sum of some rows' losses is to be divided by."""
    if kind == "single_label" and weights is not None:
        return float(weights[labels].sum())
    return float(labels.numel())


def loss_sum(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    scale: float = 1.0,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Summed loss of some rows.

    Args:
        kind: of the task.
        logits: float32 [R, C].
        labels: int64 [R], float32 [R, C] of 0 and 1, or float32 [R] (regression).
        scale: squared errors are in units of it, so that a rate suits labels of any range.
        weights: float32 [C], see `balanced_weights`.
        smoothing: share of each label that is spread over all labels (Szegedy et al. 2016,
            arXiv:1512.00567).
    """
    if kind == "single_label":
        return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
    if kind == "multi_label":
        wanted = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(
            logits, wanted, reduction="sum", pos_weight=weights
        )
    return F.mse_loss(logits[:, 0] / scale, labels / scale, reduction="sum")


def task_loss(kind: str, logits: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Mean loss of some rows, all alike: cross entropy, one binary cross entropy a label, or error.

    Squared errors are in units of `scale`.
    """
    return loss_sum(kind, logits, labels, scale) / total_weight(kind, labels)
