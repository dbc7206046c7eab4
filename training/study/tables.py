"""The study as Markdown and CSV. Pure functions from cells to text; `training.report` writes it.

The sections of the report's page: tables with what a reader must know beside them.

Which layers matter: strategies on one layer alone and on all but one, side by side.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.study.aggregates import MAIN, ZOO, Cell, method_order
from training.study.significance import FEWEST_SEEDS, Comparison, compare_parts

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
    methods = sorted({cell.method for cell in cells}, key=method_order)
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
    methods = sorted({cell.method for cell in cells}, key=method_order)
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
    methods = sorted({cell.method for cell in cells}, key=method_order)

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
    return task, float(size or -1), method_order(strategy)


def by_backbone(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """The cells of each backbone, with words for a heading; none where there is only one."""
    names = list(dict.fromkeys(cell.backbone for cell in cells))
    return [
        (f" on {name}" if len(names) > 1 else "", [cell for cell in cells if cell.backbone == name])
        for name in names
    ]


def of_main(cells: Sequence[Cell]) -> list[Cell]:
    """Those of the main part."""
    return [cell for cell in cells if cell.part == MAIN]


def sized(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of parts that vary the train size of a task."""
    sizes: dict[tuple[str, str], set[int | None]] = {}
    for cell in cells:
        sizes.setdefault((cell.part, cell.task), set()).add(cell.train_rows)
    varying = {part for (part, _), found in sizes.items() if len(found) > 1}
    return [cell for cell in cells if cell.part in varying]


def scores_sections(cells: Sequence[Cell]) -> list[str]:
    """One for each backbone and part: tables by train size, by layer, or by strategy and task."""
    return [section for words, alike in by_backbone(cells) for section in _scores(alike, words)]


def _scores(cells: Sequence[Cell], words: str) -> list[str]:
    """Of one backbone; `words` go into each heading."""
    of_sizes, main_cells = sized(cells), of_main(cells)
    sections = []
    for part in dict.fromkeys(cell.part for cell in cells):
        of_part = [cell for cell in cells if cell.part == part]
        tasks = dict.fromkeys(cell.task for cell in of_part)
        beside = [cell for cell in main_cells if cell.task in tasks and part != MAIN]
        if any(cell in of_sizes for cell in of_part):
            for task in tasks:
                of_task = [cell for cell in of_part if cell.task == task]
                methods = {cell.method for cell in of_task}
                whole = [c for c in beside if c.task == task and c.method in methods]
                table = sizes_table([*of_task, *whole])
                sections.append(f"## Part `{part}`{words}: {task}\n\n{table}")
        elif len(rules := {rule_of(cell.method) for cell in of_part}) == 1 and None not in rules:
            whole = [cell for cell in beside if cell.method in rules]
            sections.append(f"## Part `{part}`{words}\n\n{layers_table(of_part, whole)}")
        else:
            bases = {"full", "bitfit"} - {cell.method for cell in of_part}
            whole = [cell for cell in beside if cell.method in bases]
            note = f"\n`full` and `bitfit` are those of part `{MAIN}`.\n" if whole else ""
            table = methods_table([*whole, *of_part])
            sections.append(f"## Part `{part}`{words}\n\n{table}{note}")
    return sections


def rates_sections(cells: Sequence[Cell]) -> list[str]:
    """The learning rates that the main part tried, for each backbone."""
    return [
        f"## Learning rates{words}\n\nThe primary metric on the selection rows, by which the rate "
        "in bold was chosen (means over the seeds that have every rate).\n\n"
        + rates_table(of_main(alike) or alike)
        for words, alike in by_backbone(cells)
    ]


def earlier_sections(earlier: Sequence[Record], cells: Sequence[Cell]) -> list[str]:
    """The earlier study's numbers beside those of each backbone."""
    return [
        f"## Beside the earlier study{words}\n\nThe earlier study trained bert-base-cased (108 M "
        f"parameters); this one {alike[0].backbone}. Its numbers are shown at the rate that was "
        "best for each; all are in `earlier_study.csv`. What this study has no run of is left "
        "empty; where its rows are fewer than all, they are a sample, and (1) is a single seed.\n\n"
        + earlier_table(earlier, alike)
        for words, alike in by_backbone(cells)
    ]


def costs_sections(cells: Sequence[Cell]) -> list[str]:
    """What the main part's strategies cost, for each backbone."""
    return [_costs(of_main(alike) or alike, words) for words, alike in by_backbone(cells)]


def _costs(cells: Sequence[Cell], words: str) -> str:
    workers = max(cell.first.machine.workers for cell in cells)
    shared = (
        f"{workers} runs at a time, and whatever else the machine did, shared its cores and "
        "memory: a run alone is faster, and small differences mean nothing. "
    )
    return (
        f"## Costs{words}\n\n"
        "The head is part of what is trained. Times compare within one machine only, so each has a "
        "row of its own: that of its fastest seed, with its evaluations, and the median of the "
        "seeds' peaks of memory. CPU seconds are those of the run's process, its start included, "
        "where they were recorded. "
        + (shared if workers > 1 else "")
        + "A head's features are computed once.\n\n"
        + costs_table(cells)
    )


def significance_sections(cells: Sequence[Cell]) -> list[str]:
    """Each method beside full fine-tuning, and how to read it; for each backbone."""
    return [_significance(compare_parts(alike), words) for words, alike in by_backbone(cells)]


def _significance(parts: Mapping[str, Sequence[Comparison]], words: str) -> str:
    title = f"## Against full fine-tuning{words}\n\n"
    if not parts:
        return (
            f"{title}Nothing to compare: no task has {FEWEST_SEEDS} seeds of `full` and of another "
            "strategy.\n"
        )
    counts = sorted({one.seeds for found in parts.values() for one in found}, reverse=True)
    least = ", ".join(f"{2 / 2**count:.4f} with {count} seeds" for count in counts)
    said = (
        f"{title}Differences are paired: runs of one seed train on the same rows in the same "
        f"order. Where a part has no `full` of its own, it is that of part `{MAIN}`. p is that of "
        "a two-sided paired t-test; p (Holm) corrects it for all comparisons of its table, one "
        f"table a part; p (signs) is the exact sign-flip test, which can't be below {least}. With "
        "so few seeds a difference that is not significant is no proof of equality: read the "
        f"interval. Pairs with fewer than {FEWEST_SEEDS} seeds are left out.\n"
    )
    for part, found in parts.items():
        number = f"{len(found)} comparison{'s' * (len(found) > 1)}"
        said += f"\nPart `{part}`, {number}:\n\n{significance_table(found)}"
    return said


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
