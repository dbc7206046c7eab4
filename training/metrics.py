"""The metrics that tasks are judged by, on top of scikit-learn and scipy.

A degenerate run (every answer the same, a single row, a diverged run) gets the value that such
answers deserve, 0.0 where a definition divides by zero, and never NaN or a warning: sweeps rank
runs by these numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from training.errors import ConfigError, listing

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
