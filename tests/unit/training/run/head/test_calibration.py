"""Calibration: what it recovers, what it never changes, and how little a few rows can claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from tests.laws import law
from training.run.head.calibration import (
    Numbers,
    calibrated,
    calibrated_head,
    fit_calibration,
    head_as_trained,
    uncalibrated,
)
from training.run.head.reliability import expected_error


def single(rows: int, seed: int) -> tuple[Numbers, Numbers]:
    """Draw logits [R, 5] and labels with exactly the probabilities of the logits."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(rows, 5))
    labels = [rng.choice(5, p=row) for row in softmax(logits, axis=1)]
    return logits, np.array(labels)


def several(rows: int, seed: int) -> tuple[Numbers, Numbers]:
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(rows, 6)) + np.linspace(-3, 0, 6)
    return logits, (rng.random(logits.shape) < expit(logits)).astype(np.int64)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_an_overconfident_head_is_found(temperature: float) -> None:
    logits, labels = single(1500, 0)
    found = fit_calibration("single_label", logits * temperature, labels)
    assert found is not None
    assert 1 / found.scale[0] == pytest.approx(temperature, rel=0.1)


def test_the_error_on_other_rows_falls_below_the_goal() -> None:
    for draw, kind, change in (
        (single, "single_label", lambda z: 2.5 * z),
        (several, "multi_label", lambda z: 2 * z + 1),
    ):
        logits, labels = draw(1500, 0)
        found = fit_calibration(kind, change(logits), labels)  # type: ignore[arg-type]
        others, wanted = draw(3000, 1)
        before = change(others)
        after = calibrated(before, found)
        assert expected_error(kind, before, wanted) > 0.05  # type: ignore[arg-type]
        assert expected_error(kind, after, wanted) < 0.03  # type: ignore[arg-type]


def test_a_few_rows_claim_no_certainty() -> None:
    """Without a prior, rows that are all right would make every probability 1."""
    found = fit_calibration("single_label", np.eye(2)[[0, 1] * 10], np.array([0, 1] * 10))
    assert found is not None
    assert found.scale[0] < 3
    never = fit_calibration("multi_label", np.zeros((10, 1)), np.zeros((10, 1)))
    assert never is not None
    assert expit(never.shift[0]) > 0.01


def test_a_rare_label_stays_close_to_the_others() -> None:
    logits, labels = several(1500, 2)
    rare = labels.copy()
    rare[:, 0] = 0
    rare[logits[:, 0].argmin(), 0] = 1  # its only row speaks against its logits
    found = fit_calibration("multi_label", logits, rare)
    assert found is not None
    assert found.scale[0] > 0.3


def test_a_regression_or_a_diverged_run_has_no_calibration() -> None:
    assert fit_calibration("regression", np.ones((3, 1)), np.ones(3)) is None
    assert fit_calibration("single_label", np.full((3, 2), np.nan), np.zeros(3, int)) is None


@law(50)
@given(
    scale=st.floats(0.05, 20),
    row=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6, unique=True),
)
def test_a_temperature_changes_no_label(scale: float, row: list[float]) -> None:
    from deltas.manifest import Calibration

    logits = np.array([row])
    moved = calibrated(logits, Calibration(scale=(scale,)))
    assert np.array_equal(moved.argmax(axis=1), logits.argmax(axis=1))
    assert np.array_equal(np.argsort(moved), np.argsort(logits))


def test_the_head_gives_calibrated_logits_and_they_can_be_undone() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 8, generator=generator), torch.randn(6, generator=generator)
    pooled = torch.randn(20, 8, generator=generator)
    logits = (pooled @ weight.T + bias).numpy()
    _, labels = several(20, 3)
    for kind, wanted in (("single_label", labels.argmax(axis=1)), ("multi_label", labels)):
        found = fit_calibration(kind, logits, wanted)  # type: ignore[arg-type]
        new_weight, new_bias = calibrated_head((weight, bias), found)
        folded = (pooled @ new_weight.T + new_bias).numpy()
        assert folded == pytest.approx(calibrated(logits, found), abs=1e-4)
        assert uncalibrated(folded, found) == pytest.approx(logits, abs=1e-3)
        for part, trained in zip(
            head_as_trained((new_weight, new_bias), found), (weight, bias), strict=True
        ):
            assert torch.allclose(part, trained, atol=1e-5)
    assert head_as_trained((weight, bias), None) == (weight, bias)
