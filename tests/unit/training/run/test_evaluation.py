"""Metrics: known values, degenerate answers, refused input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from training.errors import ConfigError
from training.run.evaluation import METRICS, compute_metrics

LABEL_METRICS = ("accuracy", "f1", "macro_f1", "micro_f1", "matthews")


def test_known_values() -> None:
    predictions = np.array([1, 1, 0, 0, 1])
    references = np.array([1, 0, 0, 1, 1])
    values = compute_metrics(("accuracy", "f1", "macro_f1", "matthews"), predictions, references)
    assert values == pytest.approx(
        {"accuracy": 3 / 5, "f1": 2 / 3, "macro_f1": (2 / 3 + 1 / 2) / 2, "matthews": 1 / 6}
    )


def test_known_values_of_regression() -> None:
    references = np.array([0.0, 1.0, 2.0, 5.0])
    predictions = np.array([1.0, 3.0, 5.0, 11.0])
    values = compute_metrics(("pearson", "spearman", "mse"), predictions, references)
    assert values == pytest.approx({"pearson": 1.0, "spearman": 1.0, "mse": (1 + 4 + 9 + 36) / 4})


def test_known_values_of_multi_label() -> None:
    references = np.array([[1, 0, 1], [0, 1, 0]])
    predictions = np.array([[1, 0, 0], [0, 1, 1]])
    values = compute_metrics(("micro_f1", "macro_f1", "accuracy"), predictions, references)
    assert values == pytest.approx({"micro_f1": 2 / 3, "macro_f1": 2 / 3, "accuracy": 0.0})


def test_one_label_that_a_row_has_or_has_not() -> None:
    """A column of its own is no pair of classes: never found is 0, as with two columns."""
    never, references = np.zeros((4, 1), int), np.array([[0], [0], [0], [1]])
    names = ("micro_f1", "macro_f1")
    assert compute_metrics(names, never, references) == {"micro_f1": 0.0, "macro_f1": 0.0}
    assert compute_metrics(names, references, references) == {"micro_f1": 1.0, "macro_f1": 1.0}


def test_the_order_of_names_is_kept() -> None:
    names = ("f1", "accuracy")
    assert tuple(compute_metrics(names, np.array([1, 0]), np.array([1, 0]))) == names


@pytest.mark.parametrize("metric", ["matthews", "f1"])
def test_always_the_negative_class_deserves_nothing(metric: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = compute_metrics((metric,), np.zeros(6, int), np.array([0, 1, 1, 0, 1, 1]))
    assert values == {metric: 0.0}


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([2.5, 2.5, 2.5], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0]),
        ([1.0, np.inf, 3.0], [1.0, 2.0, 3.0]),
        ([1.0], [1.0]),
    ],
    ids=["constant", "constant references", "nan", "inf", "one row"],
)
def test_degenerate_correlation_is_zero_without_a_warning(
    metric: str, predictions: list[float], references: list[float]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = compute_metrics((metric,), np.array(predictions), np.array(references))
    assert values == {metric: 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_run_has_a_large_error_not_none(bad: float) -> None:
    values = compute_metrics(("mse",), np.array([1.0, bad]), np.array([1.0, 2.0]))
    assert 1e30 < values["mse"] < np.inf


@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_perfect_answers(metric: str) -> None:
    labels = np.array([0, 1, 1, 0])
    assert compute_metrics((metric,), labels, labels) == {metric: 1.0}


def test_an_unknown_metric_is_an_error_with_the_list() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'acuracy'; available: accuracy, f1"):
        compute_metrics(("acuracy",), np.array([1]), np.array([1]))
    assert "acuracy" not in METRICS


@pytest.mark.parametrize(("predictions", "references"), [([1, 0], [1]), ([], [])])
def test_shapes_that_do_not_fit_are_refused(predictions: list[int], references: list[int]) -> None:
    with pytest.raises(ConfigError, match="the same shape and at least one row"):
        compute_metrics(("accuracy",), np.array(predictions), np.array(references))
