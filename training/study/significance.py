"""Does a method differ from full fine-tuning? Paired over seeds, corrected for many comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from training.study.aggregates import MAIN, Cell

FEWEST_SEEDS = 3
_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A method beside the reference on one task.

    Attributes:
        part: of the method's cell; the reference is of the same part, or of the main one.
        train_rows: that the study asked for; None for all.
        seeds: that both have; runs of a seed see the same rows in the same order.
        difference: mean of method minus reference.
        low, high: 95 % confidence interval of the difference, from the t distribution; None where
            all seeds differ equally, which leaves no spread to judge by.
        p: of a paired t-test, two-sided; without a spread that of the test of signs.
        p_holm: the same, corrected by Holm (1979) for all comparisons of the table.
        p_signs: of the exact test that flips the signs of the differences; needs no normal
            distribution, but can't be below 2 / 2**seeds.
    """

    part: str
    backbone: str
    task: str
    train_rows: int | None
    method: str
    seeds: int
    difference: float
    low: float | None
    high: float | None
    p: float
    p_holm: float
    p_signs: float


def compare_parts(cells: Sequence[Cell], reference: str = "full") -> dict[str, list[Comparison]]:
    """The comparisons of each part that has any; each part is corrected by itself.

    A part without its own reference on a task is compared with the main part's: of the same seed,
    the same rows.
    """
    lent = [cell for cell in cells if cell.part == MAIN]
    parts = {}
    for part in dict.fromkeys(cell.part for cell in cells):
        of_part = [cell for cell in cells if cell.part == part]
        if found := compare(of_part, lent, reference):
            parts[part] = found
    return parts


def compare(
    cells: Sequence[Cell], lent: Sequence[Cell] = (), reference: str = "full"
) -> list[Comparison]:
    """Every cell beside the reference's cell of its task, size, backbone and variant.

    Cells that share fewer than three seeds with it are left out.

    Args:
        cells: of one part.
        lent: cells whose reference serves where the part has none.
        reference: the strategy to compare with.
    """
    references = {_place(cell): cell for cell in (*lent, *cells) if cell.strategy == reference}
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


def _place(cell: Cell) -> tuple[str, int | None, str, str]:
    return cell.task, cell.train_rows, cell.backbone, cell.variant


def _compare(cell: Cell, differences: Sequence[float]) -> Comparison:
    count = len(differences)
    mean = math.fsum(differences) / count
    deviation = float(np.std(differences, ddof=1))
    low = high = None
    p = p_signs = sign_flip(differences)
    if deviation > 1e-12:  # else a t-test would call any difference certain
        half = float(stats.t.ppf((1 + _LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
        low, high = mean - half, mean + half
        p = float(2 * stats.t.sf(abs(mean) / deviation * math.sqrt(count), count - 1))
    return Comparison(
        part=cell.part,
        backbone=cell.backbone,
        task=cell.task,
        train_rows=cell.train_rows,
        method=cell.method,
        seeds=count,
        difference=mean,
        low=low,
        high=high,
        p=p,
        p_holm=p,
        p_signs=p_signs,
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
