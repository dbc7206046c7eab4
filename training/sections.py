"""The sections of the report's page: tables with what a reader must know beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training import tables
from training.cells import MAIN, Cell
from training.layers import layers_table, rule_of
from training.significance import FEWEST_SEEDS, Comparison, compare_parts


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
                table = tables.sizes_table([*of_task, *whole])
                sections.append(f"## Part `{part}`{words}: {task}\n\n{table}")
        elif len(rules := {rule_of(cell.method) for cell in of_part}) == 1 and None not in rules:
            whole = [cell for cell in beside if cell.method in rules]
            sections.append(f"## Part `{part}`{words}\n\n{layers_table(of_part, whole)}")
        else:
            bases = {"full", "bitfit"} - {cell.method for cell in of_part}
            whole = [cell for cell in beside if cell.method in bases]
            note = f"\n`full` and `bitfit` are those of part `{MAIN}`.\n" if whole else ""
            table = tables.methods_table([*whole, *of_part])
            sections.append(f"## Part `{part}`{words}\n\n{table}{note}")
    return sections


def rates_sections(cells: Sequence[Cell]) -> list[str]:
    """The learning rates that the main part tried, for each backbone."""
    return [
        f"## Learning rates{words}\n\nThe primary metric on the selection rows, by which the rate "
        "in bold was chosen (means over the seeds that have every rate).\n\n"
        + tables.rates_table(of_main(alike) or alike)
        for words, alike in by_backbone(cells)
    ]


def earlier_sections(earlier: Sequence[tables.Record], cells: Sequence[Cell]) -> list[str]:
    """The earlier study's numbers beside those of each backbone."""
    return [
        f"## Beside the earlier study{words}\n\nThe earlier study trained bert-base-cased (108 M "
        f"parameters); this one {alike[0].backbone}. Its numbers are shown at the rate that was "
        "best for each; all are in `earlier_study.csv`. What this study has no run of is left "
        "empty; where its rows are fewer than all, they are a sample, and (1) is a single seed.\n\n"
        + tables.earlier_table(earlier, alike)
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
        + tables.costs_table(cells)
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
        said += f"\nPart `{part}`, {number}:\n\n{tables.significance_table(found)}"
    return said
