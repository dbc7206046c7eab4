"""What in a study does not compare: runs on other rows, in another precision, of other weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from training.cells import Cell
from training.results import Outcome


def not_comparable(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each mixture, none for a study of one piece."""
    return [*_mixed_cells(cells), *_mixed_rows(cells), *_mixed_weights(cells)]


def _mixed_cells(cells: Iterable[Cell]) -> list[str]:
    found = []
    for cell in cells:
        precisions = sorted({outcome.precision for outcome in cell.outcomes.values()})
        if len(precisions) > 1:
            found.append(
                f"part `{cell.part}`, {cell.task}, `{cell.method}`: seeds in the precisions "
                f"{' and '.join(precisions)}"
            )
    return found


def _mixed_rows(cells: Iterable[Cell]) -> list[str]:
    """Rows that are drawn are those of the seed; all others are the same for each seed."""
    digests: dict[tuple[str, int | None, int | None], set[str]] = {}
    for cell in cells:
        for seed, outcome in cell.outcomes.items():
            drawn = None if cell.train_rows is None else seed
            digests.setdefault((cell.task, cell.train_rows, drawn), set()).add(outcome.data_digest)
    return [
        f"{task}{_which(size, seed)}: runs on {len(found)} different sets of rows (data digests "
        f"{', '.join(sorted(digest[:8] for digest in found))})"
        for (task, size, seed), found in digests.items()
        if len(found) > 1
    ]


def _which(size: int | None, seed: int | None) -> str:
    return "" if size is None else f", {size:,} rows, seed {seed}"


def _mixed_weights(cells: Iterable[Cell]) -> list[str]:
    prints: dict[str, set[str]] = {}
    for outcome in _outcomes(cells):
        prints.setdefault(outcome.backbone, set()).add(outcome.fingerprint)
    return [
        f"{len(found)} different backbones are called {name} (by their fingerprints)"
        for name, found in prints.items()
        if len(found) > 1
    ]


def _outcomes(cells: Iterable[Cell]) -> Iterable[Outcome]:
    return (outcome for cell in cells for outcome in cell.outcomes.values())
