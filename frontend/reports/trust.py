"""Judges the predictions of a run: confusion, calibration, risk against coverage, thresholds.

All numbers follow from labels and logits alone, as a run left them. The letters of shapes
are explained in `deltas/encoder/__init__.py`. Tested by tests/unit/frontend/reports/test_trust.py,
which compares with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontend.errors import ServerError
from frontend.models import Reliability

Numbers = NDArray[Any]

NUM_BINS = 15  # of equal width, as in the manifest's reliability
MAX_POINTS = 200  # of a curve


@dataclass(frozen=True)
class Judged:
    """The rows of one split with their labels and logits, which are those of the calibrated head.

    `gold` holds codes [R], values [R], or 0 and 1 [R, C].
    """

    kind: str
    labels: tuple[str, ...]
    rows: Numbers  # numbers in the file of the data [R]
    gold: Numbers
    logits: Numbers  # [R, C]

    @classmethod
    def of(
        cls,
        kind: str,
        labels: Sequence[str],
        rows: Sequence[int],
        gold: Sequence[Any],
        logits: Sequence[Sequence[float]],
    ) -> Judged:
        """Check the columns against the task.

        Raises:
            ServerError: they are not those of this task; says which one and why.
        """
        width = 1 if kind == "regression" else len(labels)
        try:
            numbers, known = np.asarray(logits, np.float64), np.asarray(gold, np.float64)
        except (TypeError, ValueError):
            raise _unfit("the rows differ in the number of logits or labels") from None
        if not len(rows) or len(rows) != len(known) or len(rows) != len(numbers):
            raise _unfit(f"{len(rows)} rows, {len(known)} labels, {len(numbers)} lists of logits")
        if numbers.ndim != 2 or numbers.shape[1] != width:
            raise _unfit(f"each row needs {width} logits, one for each label of the task")
        if known.shape != ((len(rows), width) if kind == "multi_label" else (len(rows),)):
            raise _unfit("the labels have another form than those of this task")
        if not np.isfinite(numbers).all() or not np.isfinite(known).all():
            raise _unfit("a logit or label is not a finite number")
        if kind == "single_label" and not set(known) <= set(range(width)):
            raise _unfit(f"a label's code is not one of 0 to {width - 1}")
        codes = known if kind == "regression" else known.astype(np.int64)
        return cls(kind, tuple(labels), np.asarray(rows), codes, numbers)

    @property
    def probabilities(self) -> Numbers:
        """The probability of each label [R, C]; of a multi-label task each by itself."""
        if self.kind == "multi_label":
            return _sigmoid(self.logits)
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        shares: Numbers = shifted / shifted.sum(axis=1, keepdims=True)
        return shares

    @property
    def decided(self) -> Numbers:
        """The code of the most probable label [R]."""
        codes: Numbers = self.logits.argmax(axis=1)
        return codes

    def before(self, calibration: Mapping[str, Any] | None) -> Judged:
        """Return the same rows with the logits of the head before it was calibrated."""
        if calibration is None:
            return self
        shift = np.asarray(calibration.get("shift") or 0.0)
        logits = (self.logits - shift) / np.asarray(calibration["scale"])
        return Judged(self.kind, self.labels, self.rows, self.gold, logits)


def accuracy(judged: Judged) -> float:
    """Return the share of rows of a single-label task that are right."""
    return float((judged.decided == judged.gold).mean())


def confusion(judged: Judged) -> Numbers:
    """Count the rows by gold label and decided label [C, C]."""
    size = len(judged.labels)
    counts = np.bincount(judged.gold * size + judged.decided, minlength=size * size)
    return counts.reshape(size, size)


def rows_of_cell(judged: Judged, gold: int, decided: int) -> list[tuple[int, float]]:
    """Return number and probability of the rows of a cell of the confusion, the surest first."""
    found = np.flatnonzero((judged.gold == gold) & (judged.decided == decided))
    sure = judged.probabilities[found, decided]
    order = np.argsort(-sure, kind="stable")
    return [(int(judged.rows[found[at]]), float(sure[at])) for at in order]


def largest_confusion(counts: Numbers) -> tuple[int, int]:
    """Return gold and decided label of the most frequent mistake; (0, 0) if there is none."""
    mistakes = counts - np.diag(np.diag(counts))
    gold, decided = np.unravel_index(int(mistakes.argmax()), counts.shape)
    return (int(gold), int(decided)) if mistakes.any() else (0, 0)


def reliability(judged: Judged, before: Judged) -> Reliability:
    """Compare the stated probabilities with the shares that were right, in bins of equal width."""
    stated, right = _stated(judged)
    counts, probability, share = _bins(stated.ravel(), right.ravel())
    return Reliability(
        error=calibration_error(judged),
        error_before=calibration_error(before),
        counts=tuple(counts.astype(int).tolist()),
        probability=tuple(probability.tolist()),
        share=tuple(share.tolist()),
    )


def calibration_error(judged: Judged) -> float:
    """Return the expected calibration error; of a multi-label task, the mean over its labels."""
    errors = []
    for stated, right in zip(*(part.T for part in _stated(judged)), strict=True):
        counts, probability, share = _bins(stated, right)
        errors.append((counts * abs(probability - share)).sum() / counts.sum())
    return float(np.mean(errors))


@dataclass(frozen=True)
class RiskCurve:
    """The share of wrong rows among the surest ones, by the share of rows that get an answer."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    limit: tuple[float, ...]  # the least probability that still gets an answer
    area: float  # under the curve over all rows: the mean risk

    def at_risk(self, most: float) -> tuple[float, float] | None:
        """Return the largest coverage whose risk is within a bound, and its limit, if any."""
        found = [at for at, risk in enumerate(self.risk) if risk <= most]
        return (self.coverage[found[-1]], self.limit[found[-1]]) if found else None


def risk_coverage(judged: Judged) -> RiskCurve:
    """Return risk against coverage of a single-label task, over at most `MAX_POINTS` points.

    Rows of equal probability share one point, as no limit could tell them apart.
    """
    sure = judged.probabilities.max(axis=1)
    order = np.argsort(-sure, kind="stable")
    wrong = (judged.decided != judged.gold)[order].cumsum()
    numbers = np.arange(1, len(order) + 1)
    ends = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))
    risk = wrong[ends] / numbers[ends]
    area = float((risk * np.diff(numbers[ends], prepend=0)).sum() / len(order))
    some = np.unique(np.linspace(0, len(ends) - 1, min(MAX_POINTS, len(ends))).astype(int))
    kept = ends[some]
    return RiskCurve(
        coverage=tuple((numbers[kept] / len(order)).tolist()),
        risk=tuple(risk[some].tolist()),
        limit=tuple(sure[order][kept].tolist()),
        area=area,
    )


@dataclass(frozen=True)
class LabelScores:
    """A label's counts at a threshold: decided rows, right ones, and those with the label."""

    label: str
    decided: int
    right: int
    gold: int

    @property
    def precision(self) -> float | None:
        """The share of decided rows that are right; None if no row is decided."""
        return self.right / self.decided if self.decided else None

    @property
    def recall(self) -> float | None:
        """The share of the label's rows that are found; None if no row has the label."""
        return self.right / self.gold if self.gold else None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 for a label without a right row."""
        return 2 * self.right / max(1, self.decided + self.gold)


def mistakes(judged: Judged, most: int) -> list[tuple[int, str, str]]:
    """Return the most frequent mistakes: their number of rows, gold label and decided label."""
    counts = confusion(judged)
    found = [
        (int(counts[gold, decided]), judged.labels[gold], judged.labels[decided])
        for gold, decided in zip(*counts.nonzero(), strict=True)
        if gold != decided
    ]
    return sorted(found, key=lambda mistake: -mistake[0])[:most]


def label_scores(judged: Judged, threshold: float) -> list[LabelScores]:
    """Count each label's rows at a threshold.

    A multi-label task decides for every label that reaches the threshold, a single-label task for
    the most probable one if it does.
    """
    stated = judged.probabilities
    reached = stated >= threshold
    gold = judged.gold.astype(bool)
    if judged.kind == "single_label":
        codes = np.arange(len(judged.labels))
        reached &= judged.decided[:, None] == codes
        gold = judged.gold[:, None] == codes
    return [
        LabelScores(label, int(chosen.sum()), int((chosen & known).sum()), int(known.sum()))
        for label, chosen, known in zip(judged.labels, reached.T, gold.T, strict=True)
    ]


@dataclass(frozen=True)
class ValueErrors:
    """The errors of a regression: decided minus gold values."""

    mean_absolute: float
    root_mean_square: float
    pearson: float | None  # None if a column is constant
    worst: tuple[tuple[int, float, float], ...]  # row, gold and decided value, worst first


def value_errors(judged: Judged, most: int = 20) -> ValueErrors:
    """Measure the errors of a regression, and list the worst rows."""
    values = judged.logits[:, 0]
    errors = values - judged.gold
    varies = values.std() > 0 and judged.gold.std() > 0
    worst = np.argsort(-abs(errors), kind="stable")[:most]
    return ValueErrors(
        mean_absolute=float(abs(errors).mean()),
        root_mean_square=float((errors**2).mean() ** 0.5),
        pearson=float(np.corrcoef(values, judged.gold)[0, 1]) if varies else None,
        worst=tuple(
            (int(judged.rows[at]), float(judged.gold[at]), float(values[at])) for at in worst
        ),
    )


def _stated(judged: Judged) -> tuple[Numbers, Numbers]:
    """Return stated probabilities and whether each was right, both [R, C], or with one column."""
    if judged.kind == "multi_label":
        return judged.probabilities, judged.gold.astype(np.float64)
    right = (judged.decided == judged.gold).astype(np.float64)
    return judged.probabilities.max(axis=1)[:, None], right[:, None]


def _bins(stated: Numbers, right: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return count, mean probability and share of right ones of each bin; 0 in an empty bin."""
    numbers = np.minimum((stated * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts, *sums = (
        np.bincount(numbers, weights, minlength=NUM_BINS) for weights in (None, stated, right)
    )
    probability, share = (total / np.maximum(counts, 1) for total in sums)
    return counts, probability, share


def _sigmoid(logits: Numbers) -> Numbers:
    shares: Numbers = 0.5 * (1 + np.tanh(0.5 * logits))
    return shares


def _unfit(problem: str) -> ServerError:
    return ServerError(
        f"These predictions don't belong to this delta: {problem}. Choose the "
        "predictions.parquet that its run left beside it."
    )
