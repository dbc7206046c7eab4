"""Writes the study as Markdown and CSV: pure functions from cells to text.

The sections of the report's page come first, then the tables in them, then CSV. `training.report`
puts them together; the cells come from `training.study.aggregates`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from deltas.errors import one_line
from training.errors import DataError, listing
from training.options import shared_fields
from training.study.aggregates import MAIN, ZOO, Cell, method_order
from training.study.results import RunOutcome
from training.study.significance import FEWEST_SEEDS, Comparison, compare_parts

Record = Mapping[str, Any]
_NONE = ""
_TEXT_COLUMNS = ("strategy", "note", "machine")
_COLUMNS = (
    "part", "task", "strategy", "backbone", "metric", "mean", "spread", "seeds", "scores",
    "learning_rate", "rates_tried", "epochs", "steps", "train_rows", "selection_rows", "trained",
    "trained_share", "delta_bytes", "machine", "seconds", "cpu_seconds", "peak_bytes", "precision",
    "command",
)  # fmt: skip
_LAYER_COLUMNS = ("this layer alone", "all others")
_NUMBERS = re.compile(r"-?[0-9.]+(?:e[-+]?[0-9]+)?(?:[ ;]+-?[0-9.]+(?:e[-+]?[0-9]+)?)*")
_NUMBER = r"[-+]?\d*\.?\d+(e[-+]?\d+)?"
_EARLIER = {  # columns of the earlier study that are read, and their forms
    **{"task": ".+", "strategy": ".+", "train_rows": "[0-9]*"},
    **dict.fromkeys(("learning_rate", "mean", "spread"), _NUMBER),
}
_LAYERS = re.compile(r"([^@+]+)@(\d+)(?:-(\d+))?")


def by_backbone(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Return each backbone's cells with words for a heading, "" if there is only one backbone."""
    names = list(dict.fromkeys(cell.backbone for cell in cells))
    return [
        (f" on {name}" if len(names) > 1 else "", [cell for cell in cells if cell.backbone == name])
        for name in names
    ]


def main_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of the main part."""
    return [cell for cell in cells if cell.part == MAIN]


def sized_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of parts that vary the train size of a task."""
    sizes: dict[tuple[str, str], set[int | None]] = {}
    for cell in cells:
        sizes.setdefault((cell.part, cell.task), set()).add(cell.train_rows)
    varying = {part for (part, _), found in sizes.items() if len(found) > 1}
    return [cell for cell in cells if cell.part in varying]


def scores_section(cells: Sequence[Cell], words: str) -> str:
    """Write the scores of each part by train size, by layer, or by strategy and task.

    Here and in the other sections, all cells are of one backbone and `words` end each heading.
    """
    with_sizes, main = sized_cells(cells), main_cells(cells)
    sections = []
    for part in dict.fromkeys(cell.part for cell in cells):
        title = f"## Part `{part}`{words}"
        of_part = [cell for cell in cells if cell.part == part]
        tasks = _tasks(of_part)
        # Cells of the main part that are shown for comparison.
        lent = [cell for cell in main if cell.task in tasks and part != MAIN]
        if any(cell in with_sizes for cell in of_part):
            for task in tasks:
                of_task = [cell for cell in of_part if cell.task == task]
                methods = _methods(of_task)
                whole = [c for c in lent if c.task == task and c.method in methods]
                sections.append(f"{title}: {task}\n\n{sizes_table([*of_task, *whole])}")
        elif len(rules := {layers_of(c.method)[0] for c in of_part}) == 1 and None not in rules:
            whole = [cell for cell in lent if cell.method in rules]
            sections.append(f"{title}\n\n{layers_table(of_part, whole)}")
        else:
            bases = {"full", "bitfit"} - {cell.method for cell in of_part}
            whole = [cell for cell in lent if cell.method in bases]
            note = _lent_note(_methods(whole)) if whole else ""
            sections.append(f"{title}\n\n{methods_table([*whole, *of_part])}{note}")
    return "\n".join(sections)


def _lent_note(methods: Sequence[str]) -> str:
    names = " and ".join(f"`{method}`" for method in methods)
    verb = "are those" if len(methods) > 1 else "is that"
    return f"\n{names} {verb} of part `{MAIN}`.\n"


def significance_section(cells: Sequence[Cell], words: str) -> str:
    """Compare each method with full fine-tuning, and say how to read the comparison."""
    parts = compare_parts(cells)
    title = f"## Against full fine-tuning{words}\n\n"
    if not parts:
        return (
            f"{title}Nothing to compare: no task has {FEWEST_SEEDS} seeds of `full` and of another "
            "strategy.\n"
        )
    counts = sorted({one.seeds for found in parts.values() for one in found}, reverse=True)
    least = ", ".join(f"{2 / 2**count:.4f} with {count} seeds" for count in counts)
    text = (
        f"{title}Differences are paired: runs of one seed train on the same rows in the same "
        f"order. Where a part has no `full` of its own, it is that of part `{MAIN}`. p is that of "
        "a two-sided paired t-test; p (Holm) corrects it for all comparisons of its table, one "
        f"table a part; p (signs) is the exact sign-flip test, which can't be below {least}. With "
        "so few seeds a difference that is not significant is no proof of equality: read the "
        f"interval. Pairs with fewer than {FEWEST_SEEDS} seeds are left out.\n"
    )
    for part, found in parts.items():
        number = f"{len(found)} comparison{'s' * (len(found) > 1)}"
        text += f"\nPart `{part}`, {number}:\n\n{significance_table(found)}"
    return text


def rates_section(cells: Sequence[Cell], words: str) -> str:
    """Write the learning rates that the main part tried."""
    return (
        f"## Learning rates{words}\n\nThe primary metric on the selection rows, by which the rate "
        "in bold was chosen (means over the seeds that have every rate).\n\n"
        + rates_table(main_cells(cells) or cells)
    )


def costs_section(cells: Sequence[Cell], words: str) -> str:
    """Write the costs of the main part's strategies."""
    cells = main_cells(cells) or cells
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


def earlier_section(earlier: Sequence[Record], cells: Sequence[Cell], words: str) -> str:
    """Compare with the earlier study's numbers."""
    return (
        f"## Beside the earlier study{words}\n\nThe earlier study trained bert-base-cased (108 M "
        f"parameters); this one {cells[0].backbone}. Its numbers are shown at the rate that was "
        "best for each; all are in `earlier_study.csv`. What this study has no run of is left "
        "empty; where its rows are fewer than all, they are a sample, and (1) is a single seed.\n\n"
        + earlier_table(earlier, cells)
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; the first column and columns of text are aligned left."""
    text_columns = {head[0], *_TEXT_COLUMNS}
    lines = [head, ["---" if name in text_columns else "---:" for name in head], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def score(cell: Cell | None) -> str:
    """Write mean, spread and number of seeds: "0.539 ± 0.016 (5)"."""
    if cell is None:
        return _NONE
    spread = "" if cell.spread is None else f" ± {cell.spread:.3f}"
    return f"{cell.mean:.3f}{spread} ({len(cell.scores)})"


def methods_table(cells: Sequence[Cell]) -> str:
    """Write one row per method and one column per task; cells of one part, of the full size."""
    columns = {task: f"{task} ({metric})" for task, metric in _metrics(cells).items()}
    return _scores_table(cells, columns, lambda cell: cell.task)


def sizes_table(cells: Sequence[Cell]) -> str:
    """Write one row per method and one column per train size; cells of one task."""
    columns = {size: f"{size:,} rows" for size in sorted({cell.first.num_rows for cell in cells})}
    return _scores_table(cells, columns, lambda cell: cell.first.num_rows)


def _scores_table(
    cells: Sequence[Cell], columns: Mapping[Any, str], column_of: Callable[[Cell], Any]
) -> str:
    found = {(cell.method, column_of(cell)): cell for cell in cells}
    rows = (
        [f"`{method}`", *(score(found.get((method, column))) for column in columns)]
        for method in _methods(cells)
    )
    return markdown_table(["strategy", *columns.values()], rows)


def _tasks(cells: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.task for cell in cells))


def _methods(cells: Iterable[Cell]) -> list[str]:
    return sorted({cell.method for cell in cells}, key=method_order)


def _metrics(cells: Iterable[Cell]) -> dict[str, str]:
    return {cell.task: cell.first.metric for cell in cells}


def layers_of(method: str) -> tuple[str | None, frozenset[int]]:
    """Return the rule and the layers of `bitfit@2`, or of a union like `bitfit@0-1+bitfit@3-5`.

    Another method, which is not one rule on some layers, has the rule None and no layers.
    """
    found = [_LAYERS.fullmatch(part) for part in method.split("+")]
    rules = {part and part[1] for part in found}
    if None in rules or len(rules) > 1:
        return None, frozenset()
    spans = (range(int(part[2]), int(part[3] or part[2]) + 1) for part in found if part)
    return rules.pop(), frozenset(chain.from_iterable(spans))


def layers_table(cells: Sequence[Cell], whole: Sequence[Cell]) -> str:
    """Write one row per layer and two columns per task: that layer alone, all other layers.

    The last row has the cells of the same rule on all layers, `whole`.
    """
    found = {(cell.task, layers_of(cell.method)[1]): cell for cell in cells}
    metrics = _metrics(cells)
    every = frozenset[int]().union(*(layers for _, layers in found))
    rows = []
    for layer in sorted(every):
        sides = (frozenset({layer}), every - {layer})
        scores = (score(found.get((task, layers))) for task in metrics for layers in sides)
        rows.append([str(layer), *scores])
    if whole:
        by_task = {cell.task: cell for cell in whole}
        scores = (score(by_task.get(task)) for task in metrics for _ in _LAYER_COLUMNS)
        rows.append([f"all (`{whole[0].method}`)", *scores])
    columns = [f"{task} ({metrics[task]}), {side}" for task in metrics for side in _LAYER_COLUMNS]
    return markdown_table(["layer", *columns], rows)


def rows_table(cells: Sequence[Cell]) -> str:
    """Write the numbers of each task's rows; a sample is called a sample."""
    lines: dict[tuple[str, int], list[str]] = {}
    for cell in cells:
        first = cell.first
        dev = first.scores[first.dev_split]
        drawn = re.sub(r"drawn with seed \d+", "drawn with the run's seed", first.data_note)
        notes = "; ".join(filter(None, (drawn, dev.note))) or "the published sets"
        numbers = (f"{number:,}" for number in (first.train_rows, first.selection_rows, dev.rows))
        lines.setdefault((cell.task, first.num_rows), [cell.task, *numbers, notes])
    return markdown_table(["task", "train", "selection", "dev", "note"], lines.values())


def costs_table(cells: Sequence[Cell]) -> str:
    """Write trained parameters, size and time of each method on each machine; cells of one part."""
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
    """Write the primary metric on the selection rows for each tried learning rate.

    One row per method and rate, one column per task; the chosen rate is bold. Cells of one part.
    """
    tasks = _tasks(cells)
    found = {(cell.method, cell.task): cell for cell in cells}

    def shown(cell: Cell | None, rate: float) -> str:
        if cell is None or rate not in cell.tried:
            return _NONE
        value = f"{cell.tried[rate]:.3f}"
        return f"**{value}**" if rate == cell.rate else value

    rows = [
        [f"`{method}`", f"{rate:g}", *(shown(found.get((method, task)), rate) for task in tasks)]
        for method in _methods(cells)
        for rate in sorted({rate for cell in cells if cell.method == method for rate in cell.tried})
    ]
    return markdown_table(["strategy", "learning rate", *tasks], rows)


def significance_table(comparisons: Sequence[Comparison]) -> str:
    """Write comparisons with full fine-tuning, with the train size if there are several sizes."""
    sizes = ["rows"] if any(one.train_rows for one in comparisons) else []
    head = ["task", *sizes, "strategy", "seeds", "difference", "95 % interval"]
    rows = [
        [
            one.task,
            *(f"{one.train_rows:,}" if one.train_rows else "all" for _ in sizes),
            f"`{one.method}`",
            str(one.seeds),
            f"{one.difference:+.3f}",
            "no spread" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}",
            *("< 0.001" if p < 0.001 else f"{p:.3f}" for p in (one.p, one.p_holm, one.p_signs)),
        ]
        for one in comparisons
    ]
    return markdown_table([*head, "p", "p (Holm)", "p (signs)"], rows)


def earlier_table(earlier: Sequence[Record], cells: Sequence[Cell]) -> str:
    """Write the earlier study's numbers at its best rates beside this study's numbers.

    A row without a cell of this study is left empty. The last column is the number of this study's
    rows, which may be a sample.
    """
    best: dict[tuple[str, str, str], Record] = {}
    for record in sorted(earlier, key=lambda record: -float(record["mean"])):
        best.setdefault((record["task"], record["strategy"], record["train_rows"]), record)
    # For all rows the main part takes precedence. If no cell has all rows, a cell of the parts
    # `main` and `zoo`, which may be a sample, stands for them.
    main = main_cells(cells)
    ours: dict[tuple[str, str, str], Cell] = {}
    for cell in (*(cell for cell in main if cell.train_rows is None), *cells):
        ours.setdefault((cell.task, cell.method, str(cell.train_rows or "")), cell)
    for cell in (*main, *(cell for cell in cells if cell.part == ZOO)):
        ours.setdefault((cell.task, cell.method, ""), cell)
    rows = []
    # By task, all rows first, then by size and method.
    for task, strategy, size in sorted(
        best, key=lambda setting: (setting[0], float(setting[2] or -1), method_order(setting[1]))
    ):
        record, match = best[task, strategy, size], ours.get((task, strategy, size))
        rows.append(
            [
                task,
                f"`{strategy}`",
                f"{int(size):,}" if size else "all",
                f"{float(record['mean']):.3f} ± {float(record['spread']):.3f}",
                f"{float(record['learning_rate']):g}",
                score(match),
                f"{match.rate:g}" if match else _NONE,
                f"{match.first.num_rows:,}" if match else _NONE,
            ]
        )
    head = ["task", "strategy", "rows", "earlier study", "its rate"]
    return markdown_table([*head, "this study", "its rate", "its rows"], rows)


def read_earlier(path: Path) -> list[dict[str, str]]:
    """Read the earlier study: task, strategy, learning_rate, train_rows, mean, spread.

    Raises:
        DataError: not such a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError("not text in UTF-8; save it as UTF-8", path=path) from error
    reader = csv.DictReader(line for line in text.splitlines() if line[:1] != "#")
    if missing := [name for name in _EARLIER if name not in (reader.fieldnames or ())]:
        raise DataError(f"no column {listing(missing)}; it needs {listing(_EARLIER)}", path=path)
    records = list(reader)
    for number, record in enumerate(records, start=1):
        for name, form in _EARLIER.items():
            if not re.fullmatch(form, record[name] or ""):
                problem = f"{record[name]!r} is no {name}; correct it"
                raise DataError(problem, path=path, row=number, column=name)
    return records


def csv_text(records: Sequence[Record]) -> str:
    """Write records with equal keys as CSV; numbers with six significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _csv_cell(value) for name, value in record.items()})
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a number short, and a text so that no spreadsheet takes it for a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return value
    text = one_line(value)
    is_formula = text.startswith(("=", "+", "-", "@")) and not _NUMBERS.fullmatch(text)
    return f"'{text}" if is_formula else text


def cell_facts(cell: Cell) -> dict[str, Any]:
    """Return all facts of a cell: those of its first run, and those over its seeds and rates."""
    return shared_fields(cell.first, RunOutcome) | {
        "part": cell.part,
        "strategy": cell.method,
        "mean": cell.mean,
        "spread": cell.spread,
        "seeds": len(cell.scores),
        "scores": " ".join(f"{score:.4f}" for score in cell.scores.values()),
        "learning_rate": cell.rate,
        "rates_tried": len(cell.tried),
        "trained_share": cell.trained_share,
        "machine": cell.cost.machine,
        "seconds": cell.cost.seconds,
        "cpu_seconds": cell.cost.cpu_seconds,
        "peak_bytes": cell.cost.peak_bytes,
        "command": cell.command,
    }


def cell_record(cell: Cell) -> dict[str, Any]:
    """Return a cell as a line of results.csv."""
    facts = cell_facts(cell)
    return {name: facts[name] for name in _COLUMNS}
