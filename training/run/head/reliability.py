"""Measures how far stated probabilities are from the shares that turn out right.

The expected calibration error is that of Guo et al. 2017 (arXiv:1706.04599), with 15 bins of equal
width. `training.run.head.calibration` makes it smaller; the page draws the bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from deltas.manifest import Reliability, TaskKind

Numbers = NDArray[Any]

NUM_BINS = 15
_DIGITS = 6


def reliability(kind: TaskKind, logits: Numbers, before: Numbers, labels: Numbers) -> Reliability:
    """Compare the probabilities of a split with its labels.

    Args:
        kind: single or multi label.
        logits: calibrated logits [R, C].
        before: logits [R, C] before calibration.
        labels: codes [R], or 0 and 1 [R, C].
    """
    stated, right = _stated(kind, logits, labels)
    counts, probability, share = _bins(stated.ravel(), right.ravel())
    return Reliability(
        error=round(_mean_error(stated, right), _DIGITS),
        error_before=round(_mean_error(*_stated(kind, before, labels)), _DIGITS),
        counts=tuple(counts.astype(int).tolist()),
        probability=tuple(probability.round(_DIGITS).tolist()),
        share=tuple(share.round(_DIGITS).tolist()),
    )


def expected_error(kind: TaskKind, logits: Numbers, labels: Numbers) -> float:
    """Return the expected calibration error; of a multi-label task, the mean over its labels."""
    return _mean_error(*_stated(kind, logits, labels))


def _stated(kind: TaskKind, logits: Numbers, labels: Numbers) -> tuple[Numbers, Numbers]:
    """Return stated probabilities and whether each was right, both [R, 1] or [R, C]."""
    logits = logits.astype(np.float64)
    if kind == "multi_label":
        return expit(logits), labels.astype(np.float64)
    right = (logits.argmax(axis=1) == labels).astype(np.float64)
    return softmax(logits, axis=1).max(axis=1)[:, None], right[:, None]


def _mean_error(stated: Numbers, right: Numbers) -> float:
    return float(np.mean([_error(*columns) for columns in zip(stated.T, right.T, strict=True)]))


def _error(stated: Numbers, right: Numbers) -> float:
    counts, probability, share = _bins(stated, right)
    return float((counts * abs(probability - share)).sum() / counts.sum())


def _bins(stated: Numbers, right: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return count, mean probability and share of right ones of each bin; 0 in an empty bin."""
    numbers = np.minimum((stated * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts, *sums = (
        np.bincount(numbers, weights, minlength=NUM_BINS) for weights in (None, stated, right)
    )
    probability, share = (total / np.maximum(counts, 1) for total in sums)
    return counts, probability.clip(0, 1), share
