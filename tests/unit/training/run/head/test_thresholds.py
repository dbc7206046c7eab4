"""Thresholds and limits: what they reach on other rows, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from tests.unit.training.run.head.test_calibration import several, single
from training.errors import ConfigError
from training.run.head.thresholds import check_target, fit_decision


def test_thresholds_reach_their_precision_on_other_rows() -> None:
    rule, notes = fit_decision("multi_label", several(1200, 0)[0], target="precision=0.7")
    assert rule is not None
    assert not notes
    logits, labels = several(5000, 1)
    given = expit(logits) >= np.array(rule.thresholds)
    assert labels[given].mean() == pytest.approx(0.7, abs=0.04)


def test_a_precision_out_of_reach_is_told() -> None:
    rule, notes = fit_decision("multi_label", np.full((50, 2), -3.0), target="precision=0.9")
    assert rule is not None
    assert "2 of 2 labels have no selection row that reaches a precision of 0.9" in notes[0]
    _, notes = fit_decision("single_label", np.zeros((20, 4)), target="precision=0.9")
    assert "0.250 at most, not 0.9" in notes[0]


def f1(given: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * (given & (labels == 1)).sum() / (given.sum() + labels.sum()))


def test_the_default_threshold_has_a_better_micro_f1_than_one_half() -> None:
    rule, _ = fit_decision("multi_label", several(1200, 0)[0])
    assert rule is not None
    assert len(set(rule.thresholds)) == 1
    logits, labels = several(5000, 1)
    tuned = f1(expit(logits) >= np.array(rule.thresholds), labels)
    assert tuned > f1(logits >= 0, labels) + 0.03
    each, _ = fit_decision("multi_label", several(1200, 0)[0], target="f1")
    assert each is not None
    assert len(set(each.thresholds)) == len(each.thresholds)


def test_coverage_leaves_the_least_confident_rows_unanswered() -> None:
    rule, _ = fit_decision("single_label", single(1000, 0)[0], coverage=0.9)
    assert rule is not None
    assert rule.confidence == "max_logit"
    answered = [rule.answers(row) for row in single(1000, 0)[0].tolist()]
    assert sum(answered) == 900
    others = [rule.answers(row) for row in single(4000, 1)[0].tolist()]
    assert np.mean(others) == pytest.approx(0.9, abs=0.02)


def test_a_precise_limit_makes_the_answers_right() -> None:
    rule, _ = fit_decision("single_label", single(1500, 0)[0], target="precision=0.8")
    assert rule is not None
    logits, labels = single(5000, 1)
    answered = np.array([rule.answers(row) for row in logits.tolist()])
    right = logits.argmax(axis=1) == labels
    assert right.mean() < 0.75 < 0.77 < right[answered].mean()


def test_full_coverage_and_no_target_always_answer() -> None:
    logits, _ = single(50, 0)
    assert fit_decision("single_label", logits) == (None, [])
    rule, _ = fit_decision("single_label", logits, coverage=1.0)
    assert rule is not None
    assert all(rule.answers(row) for row in logits.tolist())


@pytest.mark.parametrize(
    ("kind", "target", "coverage", "message"),
    [
        ("multi_label", None, 0.9, "--coverage: a multi_label task always answers"),
        ("regression", None, 0.9, "--coverage: a regression task always answers"),
        ("regression", "f1", None, "--target: a regression answers with a number"),
        ("single_label", "f1", None, "--target f1 sets thresholds of multi-label tasks"),
        ("single_label", "precision=0.9", 0.9, "both set the limit; give one"),
    ],
)
def test_what_does_not_go_together_is_refused(
    kind: str, target: str | None, coverage: float | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_target(kind, target, coverage)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [None, "f1", "precision=0.6"])
def test_no_threshold_lies_on_a_score_or_between_equal_rows(target: str | None) -> None:
    """Rows with the same text, computed in two batches, must not be told apart."""
    logits = np.repeat(several(40, 0)[0], 5, axis=0)
    rule, _ = fit_decision("multi_label", logits, target=target)
    assert rule is not None
    distance = abs(expit(logits) - np.array(rule.thresholds))
    assert distance.min() > 5e-6
    noise = 1e-6 * np.random.default_rng(0).normal(size=logits.shape)
    given = expit(logits) >= np.array(rule.thresholds)
    assert np.array_equal(given, expit(logits + noise) >= np.array(rule.thresholds))


@pytest.mark.parametrize("options", [{"coverage": 0.83}, {"target": "precision=0.6"}])
def test_no_limit_lies_on_a_confidence(options: dict[str, Any]) -> None:
    logits = np.repeat(single(40, 0)[0], 5, axis=0)
    rule, _ = fit_decision("single_label", logits, **options)
    assert rule is not None
    assert rule.limit is not None
    found = np.array([rule.confidence_of(row) for row in logits.tolist()])
    assert abs(found - rule.limit).min() > 5e-6
    if "coverage" in options:
        assert (found >= rule.limit).mean() >= 0.83
