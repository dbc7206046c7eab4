"""The study as Markdown and CSV. Pure functions from cells to text; `training.report` writes it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.cells import MAIN, ZOO, Cell, method_place
from training.significance import Comparison

Record = Mapping[str, Any]
_NONE = ""
_WORDS = ("strategy", "note", "machine")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column and those of words are left, numbers right."""
    words = {head[0], *_WORDS}
    lines = [head, ["---" if name in words else "---:" for name in head], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_text(records: Sequence[Record]) -> str:
    """Records with equal keys as CSV; numbers with six digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {
                name: f"{value:.6g}" if isinstance(value, float) else value
                for name, value in record.items()
            }
        )
    return out.getvalue()


def cell_record(cell: Cell) -> dict[str, Any]:
    """A cell as a line of results.csv."""
    first = cell.first
    return {
        "part": cell.part,
        "task": cell.task,
        "strategy": cell.method,
        "backbone": cell.backbone,
        "metric": first.metric,
        "mean": cell.mean,
        "spread": cell.spread,
        "seeds": len(cell.scores),
        "scores": " ".join(f"{score:.4f}" for score in cell.scores.values()),
        "learning_rate": cell.rate,
        "rates_tried": len(cell.tried),
        "epochs": first.epochs,
        "steps": first.steps,
        "train_rows": first.train_rows,
        "selection_rows": first.selection_rows,
        "trained": first.trained,
        "trained_share": cell.trained_share,
        "delta_bytes": first.delta_bytes,
        "machine": cell.cost.machine,
        "seconds": cell.cost.seconds,
        "cpu_seconds": cell.cost.cpu_seconds,
        "peak_bytes": cell.cost.peak_bytes,
        "precision": first.precision,
        "command": next(iter(cell.runs.values())).command,
    }


def score(cell: Cell | None) -> str:
    """Mean, spread and number of seeds: "0.539 ± 0.016 (5)"."""
    if cell is None:
        return _NONE
    spread = "" if cell.spread is None else f" ± {cell.spread:.3f}"
    return f"{cell.mean:.3f}{spread} ({len(cell.scores)})"


def methods_table(cells: Sequence[Cell]) -> str:
    """One row a method, one column a task; cells of one part, of the task's full size."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    methods = sorted({cell.method for cell in cells}, key=method_place)
    metrics = {cell.task: cell.first.metric for cell in cells}
    found = {(cell.method, cell.task): cell for cell in cells}
    return markdown_table(
        ["strategy", *(f"{task} ({metrics[task]})" for task in tasks)],
        (
            [f"`{method}`", *(score(found.get((method, task))) for task in tasks)]
            for method in methods
        ),
    )


def sizes_table(cells: Sequence[Cell]) -> str:
    """One row a method, one column a train size; cells of one task."""
    sizes = sorted({_size(cell) for cell in cells})
    methods = sorted({cell.method for cell in cells}, key=method_place)
    found = {(cell.method, _size(cell)): cell for cell in cells}
    return markdown_table(
        ["strategy", *(f"{size:,} rows" for size in sizes)],
        (
            [f"`{method}`", *(score(found.get((method, size))) for size in sizes)]
            for method in methods
        ),
    )


def _size(cell: Cell) -> int:
    """Rows that the run was given: those that it trained on and those that it selected by."""
    return cell.first.train_rows + cell.first.selection_rows


def rows_table(cells: Sequence[Cell]) -> str:
    """What each task's rows are; a sample says so."""
    lines: dict[tuple[str, int], list[str]] = {}
    for cell in cells:
        first = cell.first
        split = next(name for name in first.scores if name != "selection")
        dev = first.scores[split]
        drawn = re.sub(r"drawn with seed \d+", "drawn with the run's seed", first.data_note)
        notes = "; ".join(filter(None, (drawn, dev.note)))
        lines.setdefault(
            (cell.task, _size(cell)),
            [
                cell.task,
                f"{first.train_rows:,}",
                f"{first.selection_rows:,}",
                f"{dev.rows:,}",
                notes or "the published sets",
            ],
        )
    return markdown_table(["task", "train", "selection", "dev", "note"], lines.values())


def costs_table(cells: Sequence[Cell]) -> str:
    """What each method trains, stores, takes: a row for each machine; cells of one part."""
    rows = [
        [
            cell.task,
            f"`{cell.method}`",
            f"{cell.first.trained:,}",
            f"{cell.trained_share:.3%}",
            f"{cell.first.delta_bytes / 1000:,.0f}",
            f"{cell.rate:g}",
            f"{cell.first.epochs:g}",
            cost.machine,
            str(cost.seeds),
            _whole(cost.seconds),
            _whole(cost.cpu_seconds),
            f"{cost.peak_bytes / 2**20:,.0f}",
        ]
        for cell in cells
        for cost in sorted(cell.costs, key=lambda cost: cost.machine)
    ]
    head = ["task", "strategy", "trained", "of all", "file, KB", "learning rate", "epochs"]
    head += ["machine", "seeds", "seconds", "CPU seconds", "peak memory, MiB"]
    return markdown_table(head, rows)


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def rates_table(cells: Sequence[Cell]) -> str:
    """The learning rates that were tried: one row each, one column a task; the chosen one is bold.

    The numbers are the primary metric on the selection rows. Cells of one part.
    """
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    found = {(cell.method, cell.task): cell for cell in cells}
    methods = sorted({cell.method for cell in cells}, key=method_place)

    def shown(cell: Cell | None, rate: float) -> str:
        if cell is None or rate not in cell.tried:
            return _NONE
        value = f"{cell.tried[rate]:.3f}"
        return f"**{value}**" if rate == cell.rate else value

    rows = [
        [f"`{method}`", f"{rate:g}", *(shown(found.get((method, task)), rate) for task in tasks)]
        for method in methods
        for rate in sorted({rate for cell in cells if cell.method == method for rate in cell.tried})
    ]
    return markdown_table(["strategy", "learning rate", *tasks], rows)


def significance_table(comparisons: Sequence[Comparison]) -> str:
    """Each method beside full fine-tuning; with the number of rows where there are several."""
    head = ["task", "strategy", "seeds", "difference", "95 % interval"]
    rows = [
        [
            one.task,
            f"`{one.method}`",
            str(one.seeds),
            f"{one.difference:+.3f}",
            "no spread" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}",
            _p_value(one.p),
            _p_value(one.p_holm),
            _p_value(one.p_signs),
        ]
        for one in comparisons
    ]
    if any(one.train_rows for one in comparisons):
        head.insert(1, "rows")
        for row, one in zip(rows, comparisons, strict=True):
            row.insert(1, f"{one.train_rows:,}" if one.train_rows else "all")
    return markdown_table([*head, "p", "p (Holm)", "p (signs)"], rows)


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def read_earlier(path: Path) -> list[dict[str, str]]:
    """The earlier study's numbers: task, strategy, learning_rate, train_rows, mean, spread."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def earlier_table(earlier: Sequence[Record], cells: Sequence[Cell]) -> str:
    """The earlier study's numbers, at the rate best for it, beside ours; empty where there is none.

    Where ours is not on all rows, the number of its rows says so.
    """
    best: dict[tuple[str, str, str], Record] = {}
    for record in earlier:
        mark = (record["task"], record["strategy"], record["train_rows"])
        if mark not in best or float(record["mean"]) > float(best[mark]["mean"]):
            best[mark] = record
    ours = _beside_earlier(cells)
    rows = []
    for mark, record in sorted(best.items(), key=_earlier_place):
        task, strategy, size = mark
        mine = ours.get(mark)
        rows.append(
            [
                task,
                f"`{strategy}`",
                f"{int(size):,}" if size else "all",
                f"{float(record['mean']):.3f} ± {float(record['spread']):.3f}",
                f"{float(record['learning_rate']):g}",
                *((score(mine), f"{mine.rate:g}", f"{_size(mine):,}") if mine else [_NONE] * 3),
            ]
        )
    head = ["task", "strategy", "rows", "earlier study", "its rate"]
    return markdown_table([*head, "this study", "its rate", "its rows"], rows)


def _beside_earlier(cells: Sequence[Cell]) -> dict[tuple[str, str, str], Cell]:
    """Our cells by task, method and rows asked for ("": all).

    On all rows part `main` goes first; where no cell has all, those of `main` and `zoo`, which may
    be samples, stand for them.
    """
    whole = [cell for part in (MAIN, ZOO) for cell in cells if cell.part == part]
    first = [cell for cell in whole if cell.part == MAIN and cell.train_rows is None]
    found: dict[tuple[str, str, str], Cell] = {}
    for cell in (*first, *cells):
        found.setdefault((cell.task, cell.method, str(cell.train_rows or "")), cell)
    for cell in whole:
        found.setdefault((cell.task, cell.method, ""), cell)
    return found


def _earlier_place(item: tuple[tuple[str, str, str], Record]) -> tuple[str, float, tuple[int, str]]:
    """By task, all rows first, then by size and method."""
    (task, strategy, size), _ = item
    return task, float(size or -1), method_place(strategy)
