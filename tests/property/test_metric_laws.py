"""Metrics equal their written-out definitions on arbitrary answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws import law
from training.run.evaluation import METRICS, compute_metrics

pytestmark = pytest.mark.law

# No deadline: how long an example takes depends on what else the machine does.
LAW = law(50)
Pairs = list[tuple[int, int]]
BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
THREE = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)
# Steps of 1/8 keep sums exact, so that two ways of computing a correlation agree closely.
VALUE = st.integers(-80, 80).map(lambda value: value / 8)
VALUES = st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=40)


def compute(metric: str, pairs: Sequence[tuple[float, float]]) -> float:
    predictions, references = np.array(pairs).T
    return compute_metrics((metric,), predictions, references)[metric]


def counts(pairs: Pairs, positive: int) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    tp = sum(p == r == positive for p, r in pairs)
    fp = sum(p == positive != r for p, r in pairs)
    fn = sum(r == positive != p for p, r in pairs)
    return tp, fp, fn, len(pairs) - tp - fp - fn


def f1(pairs: Pairs, positive: int) -> float:
    tp, fp, fn, _ = counts(pairs, positive)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    x, y = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / spread if spread else 0.0


def ranks(values: Sequence[float]) -> list[float]:
    """Mean rank for ties."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


@LAW
@given(THREE)
def test_accuracy_is_the_share_of_equal_answers(pairs: Pairs) -> None:
    assert compute("accuracy", pairs) == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))


@LAW
@given(BINARY)
def test_f1_is_the_harmonic_mean_for_class_one(pairs: Pairs) -> None:
    assert compute("f1", pairs) == pytest.approx(f1(pairs, 1))


@LAW
@given(THREE)
def test_macro_f1_is_the_mean_over_classes_that_occur(pairs: Pairs) -> None:
    classes = {label for pair in pairs for label in pair}
    expected = sum(f1(pairs, label) for label in classes) / len(classes)
    assert compute("macro_f1", pairs) == pytest.approx(expected)


@LAW
@given(BINARY)
def test_matthews_is_the_correlation_of_the_table(pairs: Pairs) -> None:
    tp, fp, fn, tn = counts(pairs, 1)
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / math.sqrt(square) if square else 0.0
    assert compute("matthews", pairs) == pytest.approx(expected, abs=1e-9)


@LAW
@given(VALUES)
def test_pearson_is_the_scaled_covariance(pairs: list[tuple[float, float]]) -> None:
    assert compute("pearson", pairs) == pytest.approx(pearson(pairs), abs=1e-9)


@LAW
@given(VALUES)
def test_spearman_is_pearson_of_ranks(pairs: list[tuple[float, float]]) -> None:
    ranked = list(zip(*(ranks(side) for side in zip(*pairs, strict=True)), strict=True))
    assert compute("spearman", pairs) == pytest.approx(pearson(ranked), abs=1e-9)


@LAW
@given(st.lists(st.tuples(*[st.tuples(st.integers(0, 1), st.integers(0, 1))] * 3), min_size=1))
def test_multi_label_f1_counts_every_cell_or_every_label(
    rows: list[tuple[tuple[int, int], ...]],
) -> None:
    cells = np.array(rows)
    predictions, references = cells[..., 0], cells[..., 1]
    values = compute_metrics(("micro_f1", "macro_f1"), predictions, references)
    flat = [(int(p), int(r)) for p, r in zip(predictions.flat, references.flat, strict=True)]
    columns = [list(zip(predictions[:, c], references[:, c], strict=True)) for c in range(3)]
    assert values["micro_f1"] == pytest.approx(f1(flat, 1))
    assert values["macro_f1"] == pytest.approx(sum(f1(column, 1) for column in columns) / 3)


@LAW
@given(BINARY, st.sampled_from(sorted(METRICS)))
def test_every_metric_is_a_finite_number(pairs: Pairs, metric: str) -> None:
    assert math.isfinite(compute(metric, pairs))


@LAW
@given(st.lists(st.floats(width=32), min_size=1), st.sampled_from(["pearson", "spearman", "mse"]))
def test_a_diverged_run_still_gets_a_number(predictions: list[float], metric: str) -> None:
    references = np.arange(len(predictions), dtype=np.float32)
    values = compute_metrics((metric,), np.array(predictions, np.float32), references)
    assert math.isfinite(values[metric])


@LAW
@given(BINARY, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(pairs: Pairs, rng: object) -> None:
    shuffled = list(pairs)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    for metric in ("accuracy", "f1", "matthews"):
        assert compute(metric, shuffled) == pytest.approx(compute(metric, pairs), abs=1e-12)
