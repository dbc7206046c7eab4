"""Losses: weights, smoothing, and that parts of a step add up to the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.run.task_model import balanced_weights, loss_sum, task_loss, total_weight

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
CODES = torch.tensor([0, 2, 2, 2, 1, 2, 2])
FLAGS = torch.tensor([[1.0, 0, 0], [1, 1, 0]] * 3 + [[0, 0, 1]])


def test_balanced_labels_weigh_alike() -> None:
    weights = balanced_weights("single_label", CODES, 3)
    assert weights.tolist() == pytest.approx([7 / 3, 7 / 3, 7 / 15])
    sums = [float(weights[CODES][label == CODES].sum()) for label in range(3)]
    assert sums == pytest.approx([7 / 3] * 3)
    assert balanced_weights("multi_label", FLAGS, 3).tolist() == pytest.approx([1 / 6, 4 / 3, 6])


def test_weighted_and_smoothed_cross_entropy_is_pytorchs() -> None:
    weights = balanced_weights("single_label", CODES, 3)
    expected = F.cross_entropy(LOGITS, CODES, weights, label_smoothing=0.1)
    found = loss_sum("single_label", LOGITS, CODES, weights=weights, smoothing=0.1)
    assert float(found / total_weight("single_label", CODES, weights)) == pytest.approx(
        float(expected)
    )


def test_smoothed_flags_are_between_their_values_and_a_half() -> None:
    found = loss_sum("multi_label", LOGITS, FLAGS, smoothing=0.2)
    expected = F.binary_cross_entropy_with_logits(LOGITS, FLAGS * 0.8 + 0.1, reduction="sum")
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("kind", "logits", "labels"),
    [
        ("single_label", LOGITS, CODES),
        ("multi_label", LOGITS, FLAGS),
        ("regression", LOGITS[:, :1], LOGITS[:, 1]),
    ],
)
def test_parts_add_up_to_the_whole(kind: str, logits: Tensor, labels: Tensor) -> None:
    weights = None if kind == "regression" else balanced_weights(kind, labels, 3)
    total = total_weight(kind, labels, weights)
    parts = sum(
        loss_sum(kind, logits[part], labels[part], 2.0, weights) / total
        for part in (slice(0, 2), slice(2, 7))
    )
    whole = loss_sum(kind, logits, labels, 2.0, weights) / total
    assert float(parts) == pytest.approx(float(whole))
    assert float(task_loss(kind, logits, labels)) == pytest.approx(
        float(loss_sum(kind, logits, labels) / total_weight(kind, labels))
    )
