"""Draws the study's figures as PNG and SVG; equal cells give equal files.

Needs matplotlib: `pip install -c constraints.txt -e '.[report]'`. Cells are made by
`training.study.aggregates`, the page around the figures by `training.report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from training.study.aggregates import Cell, method_order

# Okabe and Ito's palette; colour-blind people can tell these colours apart.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_STYLE: Any = {
    "svg.hashsalt": "deltabert",
    "svg.fonttype": "path",
    "figure.dpi": 100,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
_WIDTH, _HEIGHT = 3.4, 2.8  # size of one panel in inches
_MAX_COLUMNS = 3  # panels side by side; more would be too small to read on a page
# Columns of a run's history with the titles of their axes.
_LOSSES = {"train_loss": "training loss", "loss": "selection loss"}
_METRIC = {"metric": "{metric}, selection rows"}
# Points of one size are shifted a little to the right of each other, so that all can be seen.
_SHIFT = 1.04


def draw(
    main: Sequence[Cell], low_data: Sequence[Cell], folder: Path, ending: str = ""
) -> list[str]:
    """Draw every figure that the cells allow and return the names, without `.svg` and `.png`.

    `main` has one cell for each task and method, at the task's full size; `low_data` has cells of
    other sizes. All are of one backbone, which `ending` tells apart in the names.
    """
    figures: dict[str, Callable[[], Figure]] = {}
    stepped = [cell for cell in main if all(run.steps for run in cell.outcomes.values())]
    if main:
        figures = {
            "scores": lambda: _by_task(main, _bars),
            "spread": lambda: _by_task(main, _boxes),
        }
    if stepped:
        figures["losses"] = lambda: _by_task(stepped, partial(_histories, columns=_LOSSES), rows=2)
        figures["metric"] = lambda: _by_task(stepped, partial(_histories, columns=_METRIC))
    if main:
        figures["costs"] = lambda: _costs(main)
    if low_data:
        tasks = {cell.task for cell in low_data}
        methods = {cell.method for cell in low_data}
        full = [cell for cell in main if cell.task in tasks and cell.method in methods]
        figures["low_data"] = lambda: _by_task([*low_data, *full], _size_lines)
    with mpl.rc_context(_STYLE):
        plt.switch_backend("Agg")  # files only, on any machine
        names = {f"{name}{ending}": make for name, make in figures.items()}
        for name, make in names.items():
            figure = make()
            # Neither a date nor the library's version: equal results give equal files.
            drawing = folder / f"{name}.svg"
            figure.savefig(drawing, metadata={"Date": None, "Creator": None})
            lines = drawing.read_text(encoding="utf-8").splitlines()
            drawing.write_text("".join(line.rstrip() + "\n" for line in lines), encoding="utf-8")
            # Both files have one layout; to compute it again takes longer than to draw.
            figure.set_layout_engine("none")
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            plt.close(figure)
    return list(names)


def _by_task(
    cells: Sequence[Cell], panel: Callable[[list[Axes], list[Cell]], None], rows: int = 1
) -> Figure:
    """Draw `rows` panels for each task, one below the other, and one legend."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    columns = min(_MAX_COLUMNS, len(tasks))
    blocks = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows * blocks,
        columns,
        figsize=(_WIDTH * max(2, columns), _HEIGHT * rows * blocks),
        squeeze=False,
        layout="constrained",
    )
    for number in range(columns * blocks):
        block, column = divmod(number, columns)
        axes = [grid[block * rows + row][column] for row in range(rows)]
        if number < len(tasks):
            axes[0].set_title(tasks[number])
            panel(axes, [cell for cell in cells if cell.task == tasks[number]])
        else:
            for axis in axes:
                axis.set_visible(False)
    _legend(figure, cells)
    return figure


def _legend(figure: Figure, cells: Sequence[Cell]) -> None:
    methods = sorted({cell.method for cell in cells}, key=method_order)
    handles = [Line2D([], [], color=_colour(method), label=method) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(methods), frameon=False)


def _colour(method: str) -> str:
    number, name = method_order(method)
    return _COLOURS[5 + sum(name.encode()) % 3 if name else number]


def _bars(axes: list[Axes], cells: list[Cell]) -> None:
    """Draw mean and standard deviation over the seeds."""
    (axis,) = axes
    for number, cell in enumerate(cells):
        axis.bar(
            number, cell.mean, yerr=cell.spread, color=_colour(cell.method), capsize=3,
            alpha=0.85, error_kw={"ecolor": "#777777"},
        )  # fmt: skip
        top = (number, max(0.0, cell.mean + (cell.spread or 0.0)))
        axis.annotate(
            f"{cell.mean:.3f}", top, xytext=(0, 2), textcoords="offset points", ha="center"
        )
    _seed_axis(axis, cells)


def _seed_axis(axis: Axes, cells: list[Cell]) -> None:
    """Label each bar with its number of seeds; the colour tells the method."""
    axis.set_ylabel(f"{cells[0].first.metric}, dev set")
    seeds = [len(cell.scores) for cell in cells]
    words = [f"{count} seed{'s' * (count > 1)}" for count in seeds]
    axis.set_xticks(range(len(cells)), words, fontsize=7)
    axis.tick_params(axis="x", length=0)
    axis.grid(visible=False, axis="x")


def _boxes(axes: list[Axes], cells: list[Cell]) -> None:
    """Draw median, quartiles and every seed."""
    (axis,) = axes
    for number, cell in enumerate(cells):
        scores = list(cell.scores.values())
        if len(scores) > 1:  # outliers are hidden, because all points are drawn below
            axis.boxplot(
                scores, positions=[number], widths=0.6, medianprops={"color": "black"},
                showfliers=False,
            )  # fmt: skip
        axis.plot([number] * len(scores), scores, "o", color=_colour(cell.method), alpha=0.6)
    _seed_axis(axis, cells)


def _lines(axis: Axes, cell: Cell, column: str) -> None:
    """Draw a thin line for each seed, and their median, over optimiser steps.

    The steps of two seeds may differ by one, because their selection rows may differ by one.
    """
    lines = []
    for outcome in cell.outcomes.values():
        steps, values = outcome.history.step, getattr(outcome.history, column)
        lines.append((steps, values))
        axis.plot(steps, values, color=_colour(cell.method), linewidth=0.5, alpha=0.4)
    count = min(len(values) for _, values in lines)
    middle = [median(values[at] for _, values in lines) for at in range(count)]
    axis.plot(lines[0][0][:count], middle, color=_colour(cell.method), linewidth=1.8)


def _step_axis(axis: Axes, cells: Sequence[Cell]) -> None:
    """Make the axis logarithmic if some runs are much longer: a head takes many epochs."""
    steps = [outcome.steps for cell in cells for outcome in cell.outcomes.values()]
    if max(steps) > 4 * min(steps):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.set_xlabel("optimiser steps")


def _histories(axes: list[Axes], cells: list[Cell], columns: Mapping[str, str]) -> None:
    """Draw a column of the runs' histories on each axis; `columns` has titles by column."""
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for cell in cells:
            _lines(axis, cell, column)
        axis.set_ylabel(title.format(metric=cells[0].first.metric))
        _step_axis(axis, cells)


def _size_lines(axes: list[Axes], cells: list[Cell]) -> None:
    """Draw mean and standard deviation over the number of train rows."""
    (axis,) = axes
    for number, method in enumerate(sorted({cell.method for cell in cells}, key=method_order)):
        points = sorted(
            (cell.first.num_rows, cell.mean, cell.spread or 0.0)
            for cell in cells
            if cell.method == method
        )
        sizes, means, spreads = zip(*points, strict=True)
        shifted = [size * _SHIFT**number for size in sizes]
        axis.errorbar(shifted, means, yerr=spreads, color=_colour(method), marker="o", capsize=2)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.set_xlabel("train rows, those to select by included")
    axis.set_ylabel(f"{cells[0].first.metric}, dev set")


def _costs(cells: Sequence[Cell]) -> Figure:
    """Draw the metric over trained share, file size and time: a row for each task."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    size = (_WIDTH * 3, _HEIGHT * len(tasks))
    figure, grid = plt.subplots(len(tasks), 3, figsize=size, squeeze=False, layout="constrained")
    for task, row in zip(tasks, grid, strict=True):
        of_task = [cell for cell in cells if cell.task == task]
        time, times = _times(of_task)
        measures: dict[str, Sequence[float | None]] = {
            "trained, % of all parameters": [100 * cell.trained_share for cell in of_task],
            "file, KB": [cell.first.delta_bytes / 1000 for cell in of_task],
            time: times,
        }
        axis: Any
        for axis, (name, values) in zip(row, measures.items(), strict=True):
            for cell, value in zip(of_task, values, strict=True):
                if value is not None:
                    axis.errorbar(
                        value, cell.mean, yerr=cell.spread, color=_colour(cell.method),
                        marker="o", capsize=2,
                    )  # fmt: skip
            if name == time:
                axis.set_xlim(left=0)
            else:  # over orders of magnitude
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter("{x:,g}")
            axis.set_xlabel(name)
            axis.set_ylabel(f"{task}: {of_task[0].first.metric}, dev set")
    _legend(figure, cells)
    return figure


def _times(cells: Sequence[Cell]) -> tuple[str, list[float | None]]:
    """Return the label of the time axis of a task's cells, and each cell's time if it has one.

    Only times of one machine and one measure compare: the machine has most cells, then most seeds.
    """
    cells_on, seeds_on = Counter[str](), Counter[str]()
    for cell in cells:
        for cost in cell.costs:
            cells_on[cost.machine] += 1
            seeds_on[cost.machine] += cost.seeds
    machine = max(sorted(cells_on), key=lambda name: (cells_on[name], seeds_on[name]))
    costs = [next((c for c in cell.costs if c.machine == machine), None) for cell in cells]
    if all(cost.cpu_seconds is not None for cost in costs if cost):
        return f"CPU seconds, {machine}", [c.cpu_seconds if c else None for c in costs]
    return f"training time, s, {machine}", [c.seconds if c else None for c in costs]
