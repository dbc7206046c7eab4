"""Which layers matter: strategies on one layer alone and on all but one, side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.cells import Cell
from training.tables import markdown_table, score

_WHICH = ("this layer alone", "all others")
_RANGE = re.compile(r"([^@+]+)@(\d+)(?:-(\d+))?")


def layers_of(method: str) -> tuple[str, frozenset[int]] | None:
    """The rule and the layers of `bitfit@2`, or of a union like `bitfit@0-1+bitfit@3-5`.

    Returns:
        None for a method that isn't one rule on some layers.
    """
    rules, layers = set(), set()
    for part in method.split("+"):
        found = _RANGE.fullmatch(part)
        if found is None:
            return None
        rules.add(found[1])
        layers |= set(range(int(found[2]), int(found[3] or found[2]) + 1))
    return (rules.pop(), frozenset(layers)) if len(rules) == 1 else None


def rule_of(method: str) -> str | None:
    """The rule of a method that is one rule on some layers: "bitfit" of `bitfit@2`."""
    known = layers_of(method)
    return known and known[0]


def layers_table(cells: Sequence[Cell], whole: Sequence[Cell]) -> str:
    """One row a layer, two columns a task: that layer alone, all but that layer.

    Args:
        cells: of strategies for which `layers_of` knows the layers.
        whole: cells of the same rule on all layers, shown in the last row.
    """
    found: dict[tuple[str, frozenset[int]], Cell] = {}
    for cell in cells:
        known = layers_of(cell.method)
        if known is not None:
            found[cell.task, known[1]] = cell
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    every = frozenset[int]().union(*(layers for _, layers in found))
    rows = [
        [
            str(layer),
            *(
                score(found.get((task, layers)))
                for task in tasks
                for layers in (frozenset({layer}), every - {layer})
            ),
        ]
        for layer in sorted(every)
    ]
    if whole:
        by_task = {cell.task: cell for cell in whole}
        scores = (score(by_task.get(task)) for task in tasks for _ in range(2))
        rows.append([f"all (`{whole[0].method}`)", *scores])
    metrics = {cell.task: cell.first.metric for cell in cells}
    columns = [f"{task} ({metrics[task]}), {which}" for task in tasks for which in _WHICH]
    return markdown_table(["layer", *columns], rows)
