"""Does a method differ from full fine-tuning? Paired over seeds, corrected for many comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from training.cells import Cell

FEWEST_SEEDS = 3
_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A method beside the reference on one task.

    Attributes:
        seeds: that both have; runs of a seed see the same rows in the same order.
        difference: mean of method minus reference.
        low, high: 95 % confidence interval of the difference, from the t distribution.
        p: of a paired t-test, two-sided.
        p_holm: the same, corrected by Holm (1979) for all comparisons of the table.
        p_signs: of the exact test that flips the signs of the differences; needs no normal
            distribution, but can't be below 2 / 2**seeds.
    """

    task: str
    method: str
    seeds: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    p_signs: float


def compare(cells: Sequence[Cell], reference: str = "full") -> list[Comparison]:
    """Every cell beside the reference's cell of its part, task, size and backbone.

    Cells that share fewer than three seeds with it are left out.
    """
    references = {_place(cell): cell for cell in cells if cell.strategy == reference}
    found = []
    for cell in cells:
        other = references.get(_place(cell))
        if other is None or cell is other:
            continue
        seeds = sorted(set(cell.scores) & set(other.scores))
        if len(seeds) >= FEWEST_SEEDS:
            found.append(_compare(cell, [cell.scores[s] - other.scores[s] for s in seeds]))
    corrected = holm([comparison.p for comparison in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def _place(cell: Cell) -> tuple[str, str, int | None, str, str]:
    return cell.part, cell.task, cell.train_rows, cell.backbone, cell.variant


def _compare(cell: Cell, differences: Sequence[float]) -> Comparison:
    count = len(differences)
    mean = math.fsum(differences) / count
    deviation = float(np.std(differences, ddof=1))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    if deviation < 1e-12:  # all seeds differ equally: no spread to judge by
        p = 1.0 if abs(mean) < 1e-12 else 0.0
    else:
        p = float(2 * stats.t.sf(abs(mean) / deviation * math.sqrt(count), count - 1))
    return Comparison(
        task=cell.task,
        method=cell.method,
        seeds=count,
        difference=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        p_holm=p,
        p_signs=sign_flip(differences),
    )


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p: the share of sign patterns whose sum is at least as far from 0."""
    seen = abs(math.fsum(differences)) - 1e-12
    signs = itertools.product((1.0, -1.0), repeat=len(differences))
    sums = [
        abs(math.fsum(s * d for s, d in zip(pattern, differences, strict=True)))
        for pattern in signs
    ]
    return sum(total >= seen for total in sums) / len(sums)


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for as many comparisons as there are (Holm 1979), in the given order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected: dict[int, float] = {}
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[position]))
        corrected[position] = highest
    return [corrected[position] for position in range(len(values))]
