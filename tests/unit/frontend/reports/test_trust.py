"""The numbers of the view Trust, compared with scikit-learn's and with the manifest's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    root_mean_squared_error,
)

from deltas.manifest import Calibration
from frontend.errors import ServerError
from frontend.reports import trust
from frontend.reports.trust import (
    Judged,
    accuracy,
    calibration_error,
    confusion,
    label_scores,
    largest_confusion,
    mistakes,
    reliability,
    risk_coverage,
    rows_of_cell,
    value_errors,
)
from training.run.head import reliability as of_a_run
from training.run.head.calibration import calibrated

LABELS = ("bad", "middling", "good")


def made(kind: str = "single_label", rows: int = 500, seed: int = 0) -> Judged:
    random = np.random.default_rng(seed)
    width = 1 if kind == "regression" else len(LABELS)
    logits = random.normal(size=(rows, width)) * 1.5
    gold: Any = random.normal(size=rows)
    if kind == "single_label":
        gold = np.where(random.random(rows) < 0.7, logits.argmax(1), random.integers(0, 3, rows))
    elif kind == "multi_label":
        gold = (logits + random.normal(size=logits.shape) > 0.5).astype(int)
    labels = () if kind == "regression" else LABELS
    return Judged.of(kind, labels, list(range(1, rows + 1)), gold.tolist(), logits.tolist())


def test_confusion_and_accuracy_are_those_of_scikit_learn() -> None:
    judged = made()
    counts = confusion(judged)
    assert (counts == confusion_matrix(judged.gold, judged.decided, labels=range(3))).all()
    assert accuracy(judged) == pytest.approx(accuracy_score(judged.gold, judged.decided))


def test_the_rows_of_the_cells_are_all_rows_once() -> None:
    judged = made()
    found: list[int] = []
    for gold in range(3):
        for decided in range(3):
            cell = rows_of_cell(judged, gold, decided)
            assert len(cell) == confusion(judged)[gold, decided]
            sure = [probability for _, probability in cell]
            assert sure == sorted(sure, reverse=True)
            found += [row for row, _ in cell]
    assert sorted(found) == judged.rows.tolist()


def test_the_largest_confusion_is_a_mistake() -> None:
    counts = np.array([[90, 2, 1], [3, 80, 9], [0, 4, 70]])
    assert largest_confusion(counts) == (1, 2)
    assert largest_confusion(np.diag([3, 4, 5])) == (0, 0)


def test_the_most_frequent_mistakes_come_first() -> None:
    judged = made()
    found, counts = mistakes(judged, 4), confusion(judged)
    numbers = [number for number, _, _ in mistakes(judged, 9)]
    assert sum(numbers) == counts.sum() - np.trace(counts)
    assert numbers == sorted(numbers, reverse=True)
    assert len(found) == 4
    number, gold, decided = found[0]
    assert counts[LABELS.index(gold), LABELS.index(decided)] == number


def test_reliability_is_that_of_scikit_learn() -> None:
    judged = made()
    found = reliability(judged, judged)
    stated = judged.probabilities.max(axis=1)
    share, probability = calibration_curve(
        judged.gold == judged.decided, stated, n_bins=trust.NUM_BINS
    )
    filled = [at for at, count in enumerate(found.counts) if count]
    assert [found.share[at] for at in filled] == pytest.approx(share.tolist())
    assert [found.probability[at] for at in filled] == pytest.approx(probability.tolist())
    assert sum(found.counts) == len(judged.rows)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_the_calibration_error_is_that_of_the_manifest(kind: str) -> None:
    judged = made(kind)
    scale = (0.5,) if kind == "single_label" else (0.5, 2.0, 1.0)
    shift = () if kind == "single_label" else (0.1, -0.3, 0.0)
    calibration = Calibration(scale=scale, shift=shift)
    logits = calibrated(judged.logits, calibration)
    after = Judged(kind, LABELS, judged.rows, judged.gold, logits)
    before = after.before(calibration.model_dump())
    assert np.allclose(before.logits, judged.logits)
    assert after.before(None) is after
    written = of_a_run.reliability(kind, logits, judged.logits, judged.gold)  # type: ignore[arg-type]
    found = reliability(after, before)
    assert found.error == pytest.approx(written.error, abs=1e-6)
    assert found.error_before == pytest.approx(written.error_before, abs=1e-6)
    assert found.counts == written.counts
    assert calibration_error(after) != pytest.approx(calibration_error(before), abs=1e-3)


def test_risk_at_every_coverage_is_the_error_of_the_surest_rows() -> None:
    judged = made(rows=97)
    curve = risk_coverage(judged)
    sure = judged.probabilities.max(axis=1)
    for coverage, risk, limit in zip(curve.coverage, curve.risk, curve.limit, strict=True):
        answered = sure >= limit
        assert coverage == pytest.approx(answered.mean())
        right = accuracy_score(judged.gold[answered], judged.decided[answered])
        assert risk == pytest.approx(1 - right)
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx(1 - accuracy(judged))
    assert curve.area == pytest.approx(np.mean(curve.risk)), "each row is a point of its own"
    assert curve.at_risk(1.0) == (1.0, curve.limit[-1])
    assert curve.at_risk(-1.0) is None


def test_rows_that_no_limit_can_tell_apart_share_a_point() -> None:
    logits = [[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]
    curve = risk_coverage(Judged.of("single_label", ("a", "b"), [1, 2, 3, 4], [0, 1, 1, 0], logits))
    assert curve.coverage == (0.75, 1.0)
    assert curve.risk == pytest.approx((1 / 3, 0.5))
    assert curve.area == pytest.approx(0.75 / 3 + 0.25 * 0.5)


def test_a_long_curve_has_a_bounded_number_of_points() -> None:
    curve = risk_coverage(made(rows=5000))
    assert len(curve.coverage) == trust.MAX_POINTS
    assert curve.coverage[-1] == 1.0


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_label_scores_are_those_of_scikit_learn(kind: str, threshold: float) -> None:
    judged = made(kind)
    decided = judged.probabilities >= threshold
    gold = judged.gold.astype(bool)
    if kind == "single_label":
        decided &= np.eye(3, dtype=bool)[judged.decided]
        gold = np.eye(3, dtype=bool)[judged.gold]
    precision, recall, f1, support = precision_recall_fscore_support(gold, decided, zero_division=0)
    found = label_scores(judged, threshold)
    assert [each.precision or 0.0 for each in found] == pytest.approx(precision)
    assert [each.recall or 0.0 for each in found] == pytest.approx(recall)
    assert [each.f1 for each in found] == pytest.approx(f1)
    assert [each.gold for each in found] == support.tolist()
    assert [each.decided for each in found] == decided.sum(axis=0).tolist()


def test_a_threshold_that_nothing_reaches_has_no_precision() -> None:
    (first, *_) = label_scores(made(), 1.01)
    assert (first.decided, first.precision, first.recall) == (0, None, 0.0)


def test_the_errors_of_a_regression() -> None:
    judged = made("regression")
    found = value_errors(judged)
    values = judged.logits[:, 0]
    assert found.root_mean_square == pytest.approx(root_mean_squared_error(judged.gold, values))
    assert found.pearson == pytest.approx(np.corrcoef(judged.gold, values)[0, 1])
    errors = [abs(gold - decided) for _, gold, decided in found.worst]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(abs(values - judged.gold).max())
    alike = Judged.of("regression", (), [1, 2], [1.0, 1.0], [[0.5], [0.7]])
    assert value_errors(alike).pearson is None


@pytest.mark.parametrize(
    ("kind", "rows", "gold", "logits", "problem"),
    [
        ("single_label", [], [], [], "0 rows"),
        ("single_label", [1, 2], [0], [[0.0, 1.0, 2.0]] * 2, "1 labels"),
        ("single_label", [1], [0], [[0.0, 1.0]], "needs 3 logits"),
        ("single_label", [1], [3], [[0.0, 1.0, 2.0]], "not one of 0 to 2"),
        ("single_label", [1], [0.5], [[0.0, 1.0, 2.0]], "not one of 0 to 2"),
        ("single_label", [1, 2], [0, 1], [[0.0, 1.0, 2.0], [0.0]], "differ in the number"),
        ("single_label", [1], ["text"], [[0.0, 1.0, 2.0]], "differ in the number"),
        ("single_label", [1], [0], [[0.0, float("nan"), 2.0]], "not a finite number"),
        ("multi_label", [1], [0], [[0.0, 1.0, 2.0]], "another form"),
        ("regression", [1], [0.5], [[0.0, 1.0]], "needs 1 logits"),
    ],
)
def test_predictions_of_another_task_are_refused(
    kind: str, rows: list[int], gold: list[Any], logits: list[list[float]], problem: str
) -> None:
    labels = () if kind == "regression" else LABELS
    with pytest.raises(ServerError, match=problem):
        Judged.of(kind, labels, rows, gold, logits)
