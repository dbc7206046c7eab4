"""Tests whether a method differs from full fine-tuning: paired over seeds, corrected by Holm.

The tests are scipy's. `training.study.tables` shows the comparisons.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.options import shared_fields
from training.study.aggregates import MAIN, Cell

FEWEST_SEEDS = 3
_REFERENCE = "full"


@dataclass(frozen=True)
class Comparison:
    """A method compared with the reference on one task; runs of a seed see the same rows."""

    part: str
    backbone: str
    task: str
    train_rows: int | None
    method: str
    seeds: int  # number of seeds that both have
    difference: float  # mean of method minus reference
    low: float | None  # lower end of the 95 % confidence interval; None if all seeds differ equally
    high: float | None
    p: float  # two-sided, of the paired t-test; without a spread that of the sign-flip test
    p_holm: float  # `p` corrected for all comparisons of the table
    p_signs: float  # of the sign-flip test, which needs no normal distribution


def compare_parts(cells: Sequence[Cell]) -> dict[str, list[Comparison]]:
    """Return the comparisons of each part that has any; each part is corrected by itself.

    A part without its own reference on a task is compared with the main part's reference, because
    equal seeds mean equal rows.
    """
    parts: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        parts[cell.part].append(cell)
    found = {part: compare(of_part, parts.get(MAIN, ())) for part, of_part in parts.items()}
    return {part: comparisons for part, comparisons in found.items() if comparisons}


def compare(cells: Sequence[Cell], lent: Sequence[Cell] = ()) -> list[Comparison]:
    """Compare every cell with the reference's cell of the same task, size, backbone and variant.

    Cells that share fewer than three seeds with the reference are left out. All cells are of one
    part; the `lent` cells supply references which the part lacks.
    """
    references = {_setting(cell): cell for cell in (*lent, *cells) if cell.strategy == _REFERENCE}
    found = []
    for cell in cells:
        other = references.get(_setting(cell))
        if other is None or cell is other:
            continue
        seeds = sorted(set(cell.scores) & set(other.scores))
        if len(seeds) >= FEWEST_SEEDS:
            found.append(_compare(cell, [cell.scores[s] - other.scores[s] for s in seeds]))
    corrected = holm([comparison.p for comparison in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def _setting(cell: Cell) -> tuple[str, int | None, str, str]:
    return cell.task, cell.train_rows, cell.backbone, cell.variant


def _compare(cell: Cell, differences: Sequence[float]) -> Comparison:
    import numpy as np
    from scipy import stats

    low = high = None
    p = p_signs = sign_flip(differences)
    if np.std(differences) > 1e-12:  # else a t-test would call any difference certain
        test = stats.ttest_1samp(differences, 0.0)
        low, high = map(float, test.confidence_interval(0.95))
        p = float(test.pvalue)
    return Comparison(
        **shared_fields(cell, Comparison),
        seeds=len(differences),
        difference=float(np.mean(differences)),
        low=low,
        high=high,
        p=p,
        p_holm=p,
        p_signs=p_signs,
    )


def sign_flip(differences: Sequence[float]) -> float:
    """Return the exact two-sided p: the share of sign patterns with a sum as far from 0."""
    from scipy import stats

    test = stats.permutation_test(
        (differences,),
        lambda values, axis: abs(values.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=math.inf,
    )
    return float(test.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number of comparisons (Holm 1979); the order is kept."""
    corrected, highest = list(values), 0.0
    for rank, position in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[position]))
        corrected[position] = highest
    return corrected
