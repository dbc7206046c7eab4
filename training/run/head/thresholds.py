"""Chooses the thresholds and the limit by which a delta decides, on calibrated selection rows.

A threshold is chosen by the precision or F1 to expect if the calibrated probabilities are right.
The rows' own labels would be used twice, and a rare label's best threshold would be luck: on a
multi-label set of 28 labels, a precision of 0.8 chosen by the labels was 0.45 on other rows, chosen
by the probabilities 0.74. Read `deltas.manifest.DecisionRule` for the rule.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from deltas.manifest import Confidence, DecisionRule, TaskKind
from training.errors import ConfigError

Numbers = NDArray[Any]

_GAP = 2e-5  # smallest distance of two scores between which a threshold fits


def check_target(kind: TaskKind, target: str | None, coverage: float | None) -> None:
    """Refuse a target or coverage that does not go with the kind of task, before training.

    Raises:
        ConfigError: names the option and says which one to give instead.
    """
    if coverage is not None and kind != "single_label":
        raise ConfigError(f"--coverage: a {kind} task always answers; leave the option out")
    if target is not None and kind == "regression":
        raise ConfigError("--target: a regression answers with a number; leave the option out")
    if target == "f1" and kind == "single_label":
        raise ConfigError(
            "--target f1 sets thresholds of multi-label tasks; give --target precision=0.95 or "
            "--coverage 0.95"
        )
    if target is not None and coverage is not None:
        raise ConfigError("--coverage and --target both set the limit; give one")


def fit_decision(
    kind: TaskKind, logits: Numbers, *, target: str | None = None, coverage: float | None = None
) -> tuple[DecisionRule | None, list[str]]:
    """Return the rule that reaches a target, and notes on what it can't reach.

    Args:
        kind: the kind of the task.
        logits: calibrated logits [R, C] of rows that the head was not trained on.
        target: "f1" or "precision=0.95", the accuracy of the answers in a single-label task. By
            default, labels of a multi-label task share the threshold with the best micro F1.
        coverage: share of the rows to answer, of a single-label task.
    """
    check_target(kind, target, coverage)
    if kind == "multi_label":
        return _thresholds(expit(logits.astype(np.float64)), target)
    if coverage is not None:
        return _limit(logits, "max_logit", coverage), []
    if target is None:
        return None, []
    precision = precision_of(target)
    found = _confidences(DecisionRule(), logits)
    reached, limit = _lowest(found, precision)
    note = f"the answers reach an expected accuracy of {reached:.3f} at most, not {precision:g}"
    return DecisionRule(limit=limit), [] if reached >= precision else [note]


def precision_of(target: str) -> float:
    """Return the number of "precision=0.95"; `training.options` has checked the text."""
    return float(target.partition("=")[2])


def _confidences(rule: DecisionRule, logits: Numbers) -> Numbers:
    return np.array([rule.confidence_of(row) for row in logits.tolist()])


def num_answered(coverage: float, num_rows: int) -> int:
    """Return the least number of rows that make up a share of all rows."""
    return math.ceil(round(coverage * num_rows, 6))  # 0.9 x 1,000 is a little off 900


def _limit(logits: Numbers, confidence: Confidence, coverage: float) -> DecisionRule:
    """Return the rule that answers at least this share of the rows, the most confident ones."""
    ranked = np.sort(_confidences(DecisionRule(confidence=confidence), logits))[::-1]
    answered = num_answered(coverage, len(ranked))
    cuts = _cuts(ranked)
    at = int(cuts[np.searchsorted(cuts, answered - 1)])
    return DecisionRule(confidence=confidence, limit=_between(ranked, at))


def _thresholds(scores: Numbers, target: str | None) -> tuple[DecisionRule, list[str]]:
    if target is None:
        shared = max(0.0, _best_f1(scores.ravel()))
        return DecisionRule(thresholds=(shared,) * scores.shape[1]), []
    if target == "f1":
        return DecisionRule(thresholds=tuple(max(0.0, _best_f1(column)) for column in scores.T)), []
    precision = precision_of(target)
    found = [_lowest(column, precision) for column in scores.T]
    missed = sum(reached < precision for reached, _ in found)
    note = (
        f"{missed} of {len(found)} labels have no selection row that reaches a precision of "
        f"{precision:g}; their threshold is that of their most probable row"
    )
    rule = DecisionRule(thresholds=tuple(max(0.0, threshold) for _, threshold in found))
    return rule, [note] if missed else []


def _lowest(stated: Numbers, precision: float) -> tuple[float, float]:
    """Return the expected precision, and the lowest threshold that reaches the wanted one."""
    ranked = np.sort(stated)[::-1]
    expected = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)  # falls from row to row
    cuts = _cuts(ranked)
    at = int(cuts[max(0, int((expected[cuts] >= precision).sum()) - 1)])
    return float(expected[at]), _between(ranked, at)


def _best_f1(stated: Numbers) -> float:
    ranked = np.sort(stated)[::-1]
    given = np.arange(1, len(ranked) + 1)
    scores = 2 * np.cumsum(ranked) / (given + ranked.sum())
    cuts = _cuts(ranked)
    return _between(ranked, int(cuts[scores[cuts].argmax()]))


def _cuts(ranked: Numbers) -> Numbers:
    """Return the positions after which falling scores have a gap, and the last position.

    A row's score differs by about 1e-6 from batch to batch. A threshold on a score, or between two
    rows with the same text, would let the batch decide.
    """
    return np.append(np.flatnonzero(ranked[:-1] - ranked[1:] > _GAP), len(ranked) - 1)


def _between(ranked: Numbers, at: int) -> float:
    """Return the middle of the gap after a position; below the last one, half a gap less."""
    following = ranked[at + 1] if at + 1 < len(ranked) else ranked[at] - _GAP
    return float((ranked[at] + following) / 2)
