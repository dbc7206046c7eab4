"""Cells: which runs they join, their rate and cost, and warnings about runs that don't compare."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.training.study.test_results import make_run
from training.study import figures, tables
from training.study.aggregates import make_cells, not_comparable
from training.study.results import Run

FULL = (0.60, 0.62, 0.61, 0.66, 0.64)


BITFIT = (0.61, 0.60, 0.66, 0.67, 0.69)


def run_of(strategy: str, score: float, selection: float = 0.5, **options: Any) -> Run:
    """A run of a strategy; its outcome says so too."""
    run = make_run(score, selection, freeze=strategy, **options)
    assert run.outcome is not None
    fields: dict[str, Any] = {"strategy": strategy, "learning_rate": run.options["lr"]}
    if "train_rows" in options:
        fields |= {"train_rows": options["train_rows"] - 2, "selection_rows": 2}
    return run.model_copy(update={"outcome": run.outcome.model_copy(update=fields)})


def study_runs() -> list[Run]:
    """Two strategies with five seeds, a second rate of bitfit, and two smaller sizes."""
    made = [run_of("full", score, seed=seed) for seed, score in enumerate(FULL)]
    made += [run_of("bitfit", score, seed=seed) for seed, score in enumerate(BITFIT)]
    made += [run_of("bitfit", 0.99, 0.4, seed=0, lr=0.5)]
    small = [run_of("bitfit", 0.5 + seed / 10, seed=seed, train_rows=9) for seed in (0, 1)]
    small += [run_of("bitfit", 0.7, train_rows=99)]
    return made + [run.model_copy(update={"part": "low-data"}) for run in small]


def test_cells_are_seeds_at_the_rate_of_the_best_selection_rows() -> None:
    cells = make_cells(study_runs())
    assert [(cell.part, cell.method, cell.train_rows) for cell in cells] == [
        ("main", "full", None),
        ("main", "bitfit", None),
        ("low-data", "bitfit", 9),
        ("low-data", "bitfit", 99),
    ]
    bitfit = cells[1]
    assert bitfit.rate == 0.002, "0.99 on the dev set plays no part"
    assert bitfit.tried == {0.002: 0.5, 0.5: 0.4}
    assert tuple(bitfit.scores.values()) == BITFIT
    assert bitfit.mean == pytest.approx(0.646)
    assert bitfit.spread == pytest.approx(0.0391152144, abs=1e-9)
    assert cells[3].spread is None


def test_runs_with_other_options_are_no_cell_of_each_other() -> None:
    """Two studies of the command line: the second changed the epochs, and was better."""
    runs = [run_of("bitfit", 0.5, seed=seed, epochs=1.0, evals=2) for seed in (0, 1)]
    runs += [run_of("bitfit", 0.7, seed=seed, epochs=3.0, evals=2) for seed in (0, 1)]
    runs += [run_of("head", 0.3, epochs=1.0, evals=2)]
    assert [(cell.method, cell.mean) for cell in make_cells(runs)] == [
        ("bitfit, epochs=1.0", 0.5),
        ("bitfit, epochs=3.0", 0.7),
        ("head", 0.3),
    ]


def test_runs_that_do_not_compare_are_reported() -> None:
    def changed(run: Run, **fields: Any) -> Run:
        assert run.outcome is not None
        return run.model_copy(update={"outcome": run.outcome.model_copy(update=fields)})

    drawn = [
        changed(run_of("bitfit", 0.5, seed=seed, train_rows=9), data_digest=str(seed) * 64)
        for seed in (0, 1)
    ]
    whole = [run_of("full", 0.5, seed=seed) for seed in (0, 1)]
    assert not_comparable(make_cells([*drawn, *whole])) == [], "each seed draws its own rows"
    precise = changed(whole[1], precision="bf16")
    (said,) = not_comparable(make_cells([whole[0], precise]))
    assert said == "part `main`, rte, `full`: seeds in the precisions bf16 and fp32"
    (said,) = not_comparable(make_cells([whole[0], changed(whole[1], data_digest="f" * 64)]))
    assert said == "rte: runs on 2 different sets of rows (data digests 00000000, ffffffff)"
    other = changed(run_of("head", 0.5, seed=1, train_rows=9), data_digest="f" * 64)
    (said,) = not_comparable(make_cells([*drawn, other]))
    assert said.startswith("rte, 9 rows, seed 1: runs on 2 different sets of rows")
    (said,) = not_comparable(make_cells([whole[0], changed(whole[1], fingerprint="sha256:1")]))
    assert said == "2 different backbones are called tiny (by their fingerprints)"


def test_a_cell_s_time_is_that_of_its_fastest_whole_run() -> None:
    """Other work on the machine can only add to it; a resumed run counts from its middle."""
    changes: list[dict[str, Any]] = [
        {"seconds": 9.0, "cpu_seconds": 5.0},
        {"seconds": 7.0, "cpu_seconds": 6.0},
        {"resumed": True, "cpu_seconds": 1.0},
    ]
    runs = []
    for seed, fields in enumerate(changes):
        run = run_of("bitfit", 0.5, seed=seed)
        assert run.outcome is not None
        runs.append(run.model_copy(update={"outcome": run.outcome.model_copy(update=fields)}))
    (cell,) = make_cells(runs)
    assert (cell.cost.seconds, cell.cost.cpu_seconds) == (7.0, 5.0)
    (cell,) = make_cells(runs[2:])
    assert (cell.cost.seconds, cell.cost.cpu_seconds) == (None, None)


def test_times_are_given_by_machine() -> None:
    """A fast machine's seed says nothing about a slow one's."""
    machines = [("slow", 1, 9.0), ("fast", 1, 2.0), ("slow", 1, 8.0), ("fast", 4, 1.0)]
    runs = []
    for seed, (cpu, threads, seconds) in enumerate(machines):
        run = run_of("bitfit", 0.5, seed=seed)
        assert run.outcome is not None
        machine = run.outcome.machine.model_copy(update={"cpu": cpu, "threads": threads})
        fields = {"machine": machine, "seconds": seconds, "peak_bytes": (seed + 1) * 2**20}
        runs.append(run.model_copy(update={"outcome": run.outcome.model_copy(update=fields)}))
    cells = make_cells(runs)
    rows = [line.split(" | ")[7:] for line in tables.costs_table(cells).splitlines()[2:]]
    assert rows == [
        ["fast", "1", "2", "", "2 |"],
        ["fast, 4 threads", "1", "1", "", "4 |"],
        ["slow", "2", "8", "", "2 |"],
    ]
    record = tables.cell_record(cells[0])
    assert (record["machine"], record["seconds"]) == ("fast, 4 threads", 1.0)
    assert figures._times(cells) == ("training time, s, slow", [8.0])


def test_seeds_that_every_rate_has_decide() -> None:
    runs = [run_of("bitfit", 0.5, 0.5, seed=0), run_of("bitfit", 0.5, 0.9, seed=0, lr=0.1)]
    runs += [run_of("bitfit", 0.5, 0.99, seed=1)]
    (cell,) = make_cells(runs)
    assert cell.rate == 0.1
