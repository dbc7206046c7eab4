"""Writes what `make bench-quality` found: the goals, scores by set, every row's runs, a figure."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltas.publish.measured import QualityRow
from tests.bench.quality.goals import (
    BEST_SKLEARN,
    BEST_STOCK,
    Difference,
    compare,
    judge_goals,
    mean_score,
    pick,
    spread,
    with_best,
)
from tests.bench.quality.results import BASELINES, OURS, QualityRun, Variant, is_ours, select_runs

_DERIVED = (BEST_SKLEARN, BEST_STOCK)
TITLES = {
    "majority": "majority",
    "sklearn": "scikit-learn",
    "sklearn:apart": "scikit-learn, apart",
    "cosine": "cosine",
    BEST_STOCK: "stock full",
}
# Okabe and Ito's palette, with a mark each: colours are not the only difference.
_MARKS = {
    "cosine": ("#999999", "x"),
    "head": ("#E69F00", "s"),
    "bitfit": ("#0072B2", "o"),
    "layernorm": ("#56B4E9", "v"),
    "random:0.001": ("#009E73", "^"),
    "full": ("#D55E00", "D"),
    BEST_STOCK: ("#000000", "*"),
}
_GENERATED = re.compile(r"(<!-- generated[^>]*-->\n).*?(<!-- end of the generated part -->)", re.S)


def page(runs: Iterable[QualityRun], variant: Variant, figure: str = "") -> str:
    """Return the Markdown of a variant's runs; `figure` is the figure's link, if there is one."""
    chosen = select_runs(runs, variant)
    if not chosen:
        return "No run of this kind has been made yet.\n"
    drawing = f"![Points above scikit-learn, by set]({figure})\n\n" if figure else ""
    return (
        f"### Goals\n\n{table(goal_rows(chosen))}\n"
        f"### Scores\n\nThe primary metric on the dev rows: the mean over seeds, ± the standard "
        f"deviation.\n\n{table(score_rows(chosen))}\n{drawing}"
        f"### Differences in points\n\nMean over seeds of the same rows; above 0, the first one is "
        f"better.\n\n{table(difference_rows(chosen))}\n"
        f"### Every row\n\n{_measured_on(chosen)}\n\n{table(detail_rows(chosen))}\n"
        f"{_notes(chosen)}"
    )


def table(rows: Iterable[Sequence[str]]) -> str:
    """Format rows as a Markdown table; the first row is its head."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def goal_rows(runs: Sequence[QualityRun]) -> list[list[str]]:
    """Return a row for each goal."""
    rows = [["goal", "target", "measured", ""]]
    for goal in judge_goals(runs):
        state = "**not met**" if goal.state == "not met" else goal.state
        rows.append([goal.text, goal.target, goal.measured, state])
    return rows


def _methods(runs: Iterable[QualityRun]) -> list[str]:
    """Return the methods that have runs, baselines first; other strategies stand before `full`."""
    present = {run.method for run in runs}
    others = sorted(
        method for method in present if is_ours(method) and method not in (*OURS, *_DERIVED)
    )
    order = [*BASELINES, *OURS[:-1], *others, OURS[-1], BEST_STOCK]
    return [method for method in order if method in present]


def _title(method: str) -> str:
    return TITLES.get(method, f"`{method}`")


def score_rows(runs: Sequence[QualityRun]) -> list[list[str]]:
    """Return a row for each set, a column for each method."""
    runs = with_best(runs)
    methods = _methods(runs)
    rows = [["set", "metric", "train rows", "dev rows", *map(_title, methods)]]
    for name, of_set in by_set(runs).items():
        first = of_set[0]
        cells = [_score(pick(of_set, method)) for method in methods]
        seen = f"{max(run.train_rows + run.selection_rows for run in of_set):,}"
        rows.append([name, first.metric, seen, f"{first.rows[first.dev_split]:,}", *cells])
    return rows


def by_set(runs: Iterable[QualityRun]) -> dict[str, list[QualityRun]]:
    """Return the runs of each set."""
    found: dict[str, list[QualityRun]] = defaultdict(list)
    for run in runs:
        found[run.set].append(run)
    return found


def _score(runs: Sequence[QualityRun]) -> str:
    if not runs:
        return ""
    deviation = spread([run.score for run in runs])
    return f"{mean_score(runs):.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def difference_rows(runs: Sequence[QualityRun]) -> list[list[str]]:
    """Return a row for each set, a column for each comparison that a goal asks for."""
    runs = with_best(runs)
    pairs = {
        "`head` - scikit-learn": ("head", BEST_SKLEARN),
        "`bitfit` - scikit-learn": ("bitfit", BEST_SKLEARN),
        "`bitfit` - cosine": ("bitfit", "cosine"),
        "`bitfit` - `full`": ("bitfit", "full"),
        "`bitfit` - stock full": ("bitfit", BEST_STOCK),
        "`full` - stock full": ("full", BEST_STOCK),
        "`random:0.001` - `bitfit`": ("random:0.001", "bitfit"),
    }
    found = {title: compare(runs, *pair) for title, pair in pairs.items()}
    rows = [["set", *pairs]]
    for name in by_set(runs):
        rows.append([name, *(_points(each.get(name)) for each in found.values())])
    return rows


def _points(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.2f}" + ("" if found.spread is None else f" ± {found.spread:.2f}")


def detail_rows(runs: Sequence[QualityRun]) -> list[list[str]]:
    """Return a row for each set and method, stock rates one by one, with a command to repeat it."""
    head = ["set", "method", "train rows", "dev rows", "seeds", "metrics", "ECE", "s", "CPU s"]
    rows = [[*head, "options of the first run"]]
    for name, of_set in by_set(runs).items():
        for method in dict.fromkeys(run.method for run in of_set):
            same = pick(of_set, method)
            first = same[0]
            errors = [run.scores[run.dev_split].get("ece") for run in same]
            known = [error for error in errors if error is not None]
            cells = [
                name,
                _title(method),
                f"{first.train_rows:,}",
                " / ".join(f"{first.rows[split]:,}" for split in _dev_splits(first)),
                str(len(same)),
                _all_metrics(same),
                f"{statistics.fmean(known):.3f}" if known else "",
                f"{statistics.median(run.seconds for run in same):,.0f}",
                f"{statistics.median(run.cpu_s for run in same):,.0f}",
            ]
            rows.append([*cells, f"`{first.command}`"])
    return rows


def served_rows(runs: Iterable[QualityRun], variant: Variant) -> list[QualityRow]:
    """Return a row for each set and method of a variant, as `GET /benchmark` serves it."""
    rows = []
    for name, of_set in by_set(select_runs(runs, variant)).items():
        for method in dict.fromkeys(run.method for run in of_set):
            same = pick(of_set, method)
            first, deviation = same[0], spread([run.score for run in same])
            rows.append(
                QualityRow(
                    task=name,
                    method=method,
                    metric=first.metric,
                    mean=round(mean_score(same), 6),
                    spread=None if deviation is None else round(deviation, 6),
                    seeds=len(same),
                    split=first.dev_split,
                    split_rows=first.rows[first.dev_split],
                    train_rows=first.train_rows,
                    train_note=first.data_note,
                    trainable_parameters=first.facts.get("trained_parameters"),
                    size_bytes=first.facts.get("bytes"),
                    machine=first.cpu,
                    seconds=statistics.median(run.seconds for run in same),
                    cpu_seconds=statistics.median(run.cpu_s for run in same),
                    command=f"python -m {first.command}",
                )
            )
    return rows


def _dev_splits(run: QualityRun) -> list[str]:
    return [split for split in run.scores if split != "selection"]


def _all_metrics(runs: Sequence[QualityRun]) -> str:
    """Return mean and deviation of every metric on every dev split, the primary one first."""
    parts = []
    for split in _dev_splits(runs[0]):
        for metric in runs[0].scores[split]:
            if metric in ("ece", "ece_before", "loss"):
                continue
            values = [run.scores[split][metric] for run in runs]
            deviation = spread(values)
            told = "" if deviation is None else f" ± {deviation:.3f}"
            parts.append(f"{metric} {statistics.fmean(values):.3f}{told}")
    return ", ".join(parts)


def _measured_on(runs: Sequence[QualityRun]) -> str:
    cpus = ", ".join(dict.fromkeys(run.cpu for run in runs))
    threads = ", ".join(dict.fromkeys(str(run.threads) for run in runs))
    return (
        f"Measured on {cpus}, threads: {threads}, with other work beside it. *s* is the time of "
        "training and scoring, *CPU s* the CPU time of the whole process with its start; both are "
        "medians. Where two dev splits have metrics, they stand in the splits' order. Files are "
        "relative to the folder of the sets."
    )


def _notes(runs: Sequence[QualityRun]) -> str:
    """Return a line for each set whose rows are not the published ones."""
    lines = []
    for name, of_set in by_set(runs).items():
        notes = dict.fromkeys(
            re.sub(r" with seed \d+", " by the seed", r.data_note) for r in of_set
        )
        if told := "; ".join(filter(None, notes)):
            lines.append(f"- `{name}`: {told}\n")
    return "\n" + "".join(lines) if lines else ""


def draw(runs: Iterable[QualityRun], variant: Variant, path: Path) -> bool:
    """Draw the points above scikit-learn, by set; returns False if there is nothing to compare."""
    import matplotlib as mpl

    chosen = with_best(select_runs(runs, variant))
    found = {
        method: compare(chosen, method, BEST_SKLEARN)
        for method in _methods(chosen)
        if method in _MARKS
    }
    sets = [name for name in by_set(chosen) if any(name in each for each in found.values())]
    if not sets:
        return False
    style: Any = {"svg.hashsalt": "deltabert", "svg.fonttype": "path", "font.size": 9}
    with mpl.rc_context(style):
        _save(_figure(found, sets), path)
    return True


def _figure(found: Mapping[str, Mapping[str, Difference]], sets: Sequence[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 1.2 + 0.34 * len(sets)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#999999", linewidth=1)
    shown = [method for method, each in found.items() if each]
    for number, method in enumerate(shown):
        colour, mark = _MARKS[method]
        height = 0.6 * ((number + 0.5) / len(shown) - 0.5)  # each method beside the others
        each = [found[method][name] for name in sets if name in found[method]]
        axis.errorbar(
            [one.value for one in each],
            [sets.index(one.set) + height for one in each],
            xerr=[one.spread or 0.0 for one in each],
            fmt=mark,
            color=colour,
            markersize=5,
            elinewidth=0.8,
            label=_title(method).strip("`"),
        )
    axis.set_yticks(range(len(sets)), sets)
    axis.invert_yaxis()
    axis.set_xlabel("points above scikit-learn on frozen embeddings (mean over seeds ± deviation)")
    axis.grid(visible=True, axis="both", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})  # equal results, equal files
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(line.rstrip() + "\n" for line in lines), encoding="utf-8")


def write(runs: Sequence[QualityRun], variant: Variant, target: Path) -> None:
    """Write a page, and its figure beside it.

    A page that exists keeps its own prose: only its generated part is replaced.
    """
    drawing = target.with_suffix(".svg")
    figure = drawing.name if draw(runs, variant, drawing) else ""
    content = page(runs, variant, figure)
    before = f"# Quality\n\n{BEGIN}\n{END}\n"
    if target.exists():
        before = target.read_text(encoding="utf-8")
    if not _GENERATED.search(before):
        raise ValueError(f"{target} has no generated part to replace; move it away")
    text = _GENERATED.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", before)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


BEGIN = "<!-- generated by `make docs`; do not edit -->"
END = "<!-- end of the generated part -->"
