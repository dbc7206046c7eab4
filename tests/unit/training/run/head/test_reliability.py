"""The expected calibration error against its written-out definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws import law
from training.run.head.reliability import NUM_BINS, expected_error, reliability


def test_single_label_by_hand() -> None:
    """Four rows state 0.8 and three of them are right; two state 0.5 and one is right."""
    sure, unsure = [np.log(4.0), 0.0], [0.0, 0.0]
    logits = np.array([sure] * 4 + [unsure] * 2)
    labels = np.array([0, 0, 0, 1, 0, 1])
    found = reliability("single_label", logits, logits, labels)
    assert found.error == pytest.approx(4 / 6 * 0.05, abs=1e-6)
    assert found.error_before == found.error
    assert found.counts[7] == 2
    assert found.counts[12 if 0.8 * NUM_BINS >= 12 else 11] + found.counts[11] == 4
    assert sum(found.counts) == 6


def test_multi_label_is_the_mean_over_labels() -> None:
    logits = np.zeros((4, 2))
    labels = np.array([[1, 1], [1, 0], [1, 1], [1, 0]])
    assert expected_error("multi_label", logits, labels) == pytest.approx((0.5 + 0.0) / 2)
    assert sum(reliability("multi_label", logits, logits, labels).counts) == 8


def test_the_error_before_is_that_of_the_other_logits() -> None:
    labels = np.array([0, 1, 0, 1])
    right = np.where(np.eye(2)[labels] == 1, 9.0, -9.0)
    found = reliability("single_label", right, -right, labels)
    assert found.error < 0.001
    assert found.error_before > 0.99


@law(50)
@given(
    logits=st.lists(st.lists(st.floats(-80, 80), min_size=3, max_size=3), min_size=1, max_size=40),
    code=st.integers(0, 2),
)
def test_bounds(logits: list[list[float]], code: int) -> None:
    numbers, labels = np.array(logits), np.full(len(logits), code)
    found = reliability("single_label", numbers, numbers, labels)
    assert 0 <= found.error <= 1
    assert len(found.counts) == len(found.share) == len(found.probability) == NUM_BINS
    assert sum(found.counts) == len(logits)
