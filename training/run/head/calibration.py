"""Calibrates a trained head on the selection rows, so that its probabilities mean what they say.

A single-label task gets a temperature (Guo et al. 2017, arXiv:1706.04599), which changes no label.
A multi-label task gets a scale and a shift for each label (Platt 1999). Both are linear, so they
are multiplied into the head: whoever reads the delta gets calibrated logits. Priors keep a few rows
from claiming certainty. `training.run.head.reliability` measures the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logsumexp
from torch import Tensor

from deltas.manifest import Calibration, TaskKind

Numbers = NDArray[Any]

# Standard deviations of the priors: of the log of a scale, and of a shift. They weigh as much as
# about ten rows, so that hundreds of rows decide by themselves.
_LOG_SCALE_DEVIATION, _SHIFT_DEVIATION = 0.5, 0.5
_MOST = 3.0  # largest absolute log of a scale


def fit_calibration(kind: TaskKind, logits: Numbers, labels: Numbers) -> Calibration | None:
    """Fit the calibration of a head; None for a regression, which states no probabilities.

    Args:
        kind: the kind of the task.
        logits: [R, C], of rows that the head was not trained on.
        labels: codes [R], or 0 and 1 [R, C].
    """
    if kind == "regression" or not np.isfinite(logits).all():
        return None
    logits = logits.astype(np.float64)
    if kind == "single_label":
        return Calibration(scale=(_fit_scale(logits, labels),))
    shared = _fit_line(logits.ravel(), labels.ravel(), (0.0, 0.0))
    # A rare label stays close to what all labels have in common.
    lines = [
        _fit_line(column, wanted, shared) for column, wanted in zip(logits.T, labels.T, strict=True)
    ]
    return Calibration(
        scale=tuple(float(np.exp(log_scale)) for log_scale, _ in lines),
        shift=tuple(shift for _, shift in lines),
    )


def calibrated(logits: Numbers, calibration: Calibration | None) -> Numbers:
    """Apply a calibration to logits [R, C]."""
    if calibration is None:
        return logits
    scaled: Numbers = logits * np.asarray(calibration.scale) + np.asarray(calibration.shift or 0.0)
    return scaled.astype(logits.dtype)


def uncalibrated(logits: Numbers, calibration: Calibration | None) -> Numbers:
    """Return the logits [R, C] before they were calibrated."""
    if calibration is None:
        return logits
    shifted = logits - np.asarray(calibration.shift or 0.0)
    raw: Numbers = shifted / np.asarray(calibration.scale)
    return raw


def calibrated_head(
    head: tuple[Tensor, Tensor], calibration: Calibration | None
) -> tuple[Tensor, Tensor]:
    """Return weight [C, H] and bias [C] of the head that gives calibrated logits."""
    weight, bias = head
    if calibration is None:
        return weight, bias
    scale = bias.new_tensor(calibration.scale)
    shift = bias.new_tensor(calibration.shift) if calibration.shift else bias.new_zeros(())
    return weight * scale[:, None], bias * scale + shift


def head_as_trained(
    head: tuple[Tensor, Tensor], calibration: Calibration | None
) -> tuple[Tensor, Tensor]:
    """Return weight [C, H] and bias [C] of the head before it was calibrated.

    A run that starts from the head of a delta calibrates it again. The recorded scale would
    otherwise be one of two, and the priors would count twice.
    """
    weight, bias = head
    if calibration is None:
        return weight, bias
    scale = bias.new_tensor(calibration.scale)
    shift = bias.new_tensor(calibration.shift) if calibration.shift else bias.new_zeros(())
    return weight / scale[:, None], (bias - shift) / scale


def _fit_scale(logits: Numbers, labels: Numbers) -> float:
    """Return 1 / temperature: the most likely scale given the rows and the prior."""
    right = logits[np.arange(len(labels)), labels]

    def cost(log_scale: float) -> float:
        scale = np.exp(log_scale)
        loss = logsumexp(logits * scale, axis=1) - right * scale
        return float(loss.sum() + 0.5 * (log_scale / _LOG_SCALE_DEVIATION) ** 2)

    return float(np.exp(minimize_scalar(cost, bounds=(-_MOST, _MOST), method="bounded").x))


def _fit_line(logits: Numbers, wanted: Numbers, centre: tuple[float, float]) -> tuple[float, float]:
    """Return log scale and shift of one label: the most likely ones, with a prior at `centre`."""
    deviation = np.array([_LOG_SCALE_DEVIATION, _SHIFT_DEVIATION])

    def cost(point: Numbers) -> tuple[float, Numbers]:
        scale, away = np.exp(point[0]), (point - centre) / deviation
        moved = logits * scale + point[1]
        error = expit(moved) - wanted
        gradient = np.array([(error * logits).sum() * scale, error.sum()])
        loss = np.logaddexp(0.0, moved) - wanted * moved
        return float(loss.sum() + 0.5 * (away**2).sum()), gradient + away / deviation

    bounds = [(-_MOST, _MOST), (None, None)]
    log_scale, shift = minimize(cost, centre, jac=True, bounds=bounds, method="L-BFGS-B").x
    return float(log_scale), float(shift)
