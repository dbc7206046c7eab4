"""The report: the numbers of its tables worked out by hand, and equal files from equal lines."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from deltas.publish.study import study_path
from tests.unit.training.study.test_results import make_run
from training import report
from training.study import figures, tables
from training.study.aggregates import make_cells, not_comparable
from training.study.results import Run, append_run
from training.study.significance import compare, compare_parts, holm, sign_flip

ROOT = Path(__file__).parents[3]
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


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Two strategies with five seeds, a second rate of bitfit, and two smaller sizes."""
    made = [run_of("full", score, seed=seed) for seed, score in enumerate(FULL)]
    made += [run_of("bitfit", score, seed=seed) for seed, score in enumerate(BITFIT)]
    made += [run_of("bitfit", 0.99, 0.4, seed=0, lr=0.5)]
    small = [run_of("bitfit", 0.5 + seed / 10, seed=seed, train_rows=9) for seed in (0, 1)]
    small += [run_of("bitfit", 0.7, train_rows=99)]
    return made + [run.model_copy(update={"part": "low-data"}) for run in small]


@pytest.fixture(scope="module")
def results(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with these lines, one of a run that failed, and a person's conclusions."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copy(ROOT / "docs/results/earlier_study.csv", folder)
    failed = runs[0].model_copy(update={"key": "f", "outcome": None, "error": "diverged at step 3"})
    for run in [*runs, failed]:
        append_run(folder / "runs.jsonl", run)
    (folder / "conclusions.md").write_text("## What follows\n\nNothing yet.\n")
    return folder


@pytest.fixture(scope="module")
def out(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on them: figures take seconds."""
    folder = tmp_path_factory.mktemp("report")
    words = ["--results", str(results), "--out", str(folder)]
    assert report.main([*words, "--benchmark", str(folder / "study.json")]) == 0
    return folder


def test_cells_are_seeds_at_the_rate_of_the_best_selection_rows(runs: list[Run]) -> None:
    cells = make_cells(runs)
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


def test_a_variant_is_compared_with_its_own_reference() -> None:
    runs = [
        run_of(strategy, score + epochs / 10, seed=seed, epochs=epochs)
        for seed, score in enumerate((0.1, 0.2, 0.4))
        for strategy, epochs in (("full", 1.0), ("full", 2.0), ("bitfit", 2.0), ("bitfit", 1.0))
    ]
    found = compare(make_cells(runs))
    assert [(one.method, one.difference) for one in found] == [
        ("bitfit, epochs=1.0", 0.0),
        ("bitfit, epochs=2.0", 0.0),
    ]


def test_what_does_not_compare_is_said() -> None:
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


def test_times_are_told_by_machine() -> None:
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
    assert figures._time_measure(cells)[0] == "training time, s, slow"
    assert figures._time_measure(cells)[1](cells[0]) == 8.0


@pytest.mark.parametrize(("factor", "scale"), [(2, "linear"), (8, "log")])
def test_the_metric_is_drawn_over_steps(factor: int, scale: str) -> None:
    """Over shares a head, which takes many more steps, would look as fast as others."""
    from matplotlib.figure import Figure

    short, long = run_of("bitfit", 0.5), run_of("head", 0.5)
    assert long.outcome is not None
    steps = (factor, 2 * factor)
    history = long.outcome.history.model_copy(update={"step": steps})
    fields = {"history": history, "steps": steps[-1]}
    long = long.model_copy(update={"outcome": long.outcome.model_copy(update=fields)})
    axis = Figure().subplots()
    figures._metric_lines([axis], make_cells([short, long]))
    assert {tuple(np.asarray(line.get_xdata()).tolist()) for line in axis.lines} == {(1, 2), steps}
    assert (axis.get_xscale(), axis.get_xlabel()) == (scale, "optimiser steps")


def test_seeds_that_every_rate_has_decide() -> None:
    runs = [run_of("bitfit", 0.5, 0.5, seed=0), run_of("bitfit", 0.5, 0.9, seed=0, lr=0.1)]
    runs += [run_of("bitfit", 0.5, 0.99, seed=1)]
    (cell,) = make_cells(runs)
    assert cell.rate == 0.1


def test_significance_is_that_of_scipy(runs: list[Run]) -> None:
    (found,) = compare([cell for cell in make_cells(runs) if cell.part == "main"])
    reference = stats.ttest_rel(BITFIT, FULL)
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.difference == pytest.approx(0.02)
    exact = stats.permutation_test(
        ([b - f for b, f in zip(BITFIT, FULL, strict=True)],),
        lambda x: abs(x.sum()),
        permutation_type="samples",
        alternative="greater",
    )
    assert found.p_signs == pytest.approx(exact.pvalue)
    assert (found.method, found.seeds, found.p_holm) == ("bitfit", 5, found.p)


def test_seeds_are_paired_and_few_are_left_out() -> None:
    full = [run_of("full", score, seed=seed) for seed, score in enumerate(FULL)]
    shifted = [run_of("head", FULL[seed] - 0.1, seed=seed) for seed in (4, 2, 0)]  # all alike
    few = [run_of("layernorm", 0.9, seed=seed) for seed in (0, 1)]
    (found,) = compare(make_cells([*full, *shifted, *few]))
    assert (found.method, found.seeds) == ("head", 3)
    assert found.difference == pytest.approx(-0.1)
    assert found.p == found.p_signs == 0.25, "three equal differences are no certainty"
    assert (found.low, found.high) == (None, None)
    assert "| no spread | 0.250 |" in tables.significance_table([found])
    (same,) = compare(make_cells([*full, *(run_of("head", FULL[n], seed=n) for n in range(5))]))
    assert (same.difference, same.p) == (0.0, 1.0)


def test_a_part_is_compared_with_its_own_full_or_with_that_of_the_main_part() -> None:
    def moved(part: str, runs: list[Run]) -> list[Run]:
        return [run.model_copy(update={"part": part}) for run in runs]

    full = [run_of("full", score, seed=seed) for seed, score in enumerate(FULL)]
    own = [run_of("full", score - 0.3, seed=seed, train_rows=9) for seed, score in enumerate(FULL)]
    small = [run_of("bitfit", score, seed=seed, train_rows=9) for seed, score in enumerate(BITFIT)]
    layers = [run_of("bitfit@1", score, seed=seed) for seed, score in enumerate(BITFIT[:3])]
    few = [run_of("head", 0.5, seed=seed) for seed in (0, 1)]
    cells = [*full, *moved("low-data", own + small), *moved("layers", layers), *moved("few", few)]
    found = compare_parts(make_cells(cells))
    assert list(found) == ["low-data", "layers"]
    (of_sizes,), (of_layers,) = found.values()
    assert (of_sizes.train_rows, of_sizes.seeds) == (9, 5)
    assert of_sizes.difference == pytest.approx(0.32)
    assert (of_layers.method, of_layers.seeds) == ("bitfit@1", 3)
    assert of_layers.difference == pytest.approx((0.01 - 0.02 + 0.05) / 3)
    assert "| rte | 9 | `bitfit` | 5 |" in tables.significance_table([of_sizes])


def test_many_comparisons_are_corrected() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert sign_flip([0.1] * 5) == 2 / 32
    assert sign_flip([0.1, -0.1]) == 1.0


def test_the_page_says_what_the_lines_say(out: Path) -> None:
    page = (out / "README.md").read_text()
    assert "| `full` | 0.626 ± 0.024 (5) |" in page
    assert "| `bitfit` | 0.646 ± 0.039 (5) |" in page
    assert "| rte | `bitfit` | 5 | +0.020 | -0.017 to +0.057 | 0.210 | 0.210 |" in page
    assert "Failed: rte full 0.002 0: diverged at step 3" in page
    assert "0.670 ± 0.016 | 0.0005 | 0.646 ± 0.039 (5) |" in page, "beside the earlier study"
    for image in re.findall(r"\((\w+\.svg)\)", page):
        assert (out / image).read_bytes().startswith(b"<?xml")
        assert (out / image).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "low_data.svg" in page
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["mean"] for row in rows] == ["0.626", "0.646", "0.55", "0.7"]


def test_the_page_shows_rates_costs_and_the_other_parts_beside_the_main_one(
    results: Path, tmp_path: Path
) -> None:
    lines = shutil.copytree(results, tmp_path / "lines")
    for run in (run_of("bitfit@0", 0.4), run_of("bitfit@1", 0.3), run_of("head", 0.2)):
        part = "others" if run.options["freeze"] == "head" else "layers"
        append_run(lines / "runs.jsonl", run.model_copy(update={"part": part}))
    report.report(lines, tmp_path / "out", tmp_path / "study.json")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| `bitfit` | 0.002 | **0.500** |\n| `bitfit` | 0.5 | 0.400 |\n" in page
    assert "| `bitfit` | 0.550 ± 0.071 (2) | 0.700 (1) | 0.646 ± 0.039 (5) |" in page, "by size"
    assert "| 0 | 0.400 (1) | 0.300 (1) |\n| 1 | 0.300 (1) | 0.400 (1) |" in page, "by layer"
    assert "| all (`bitfit`) | 0.646 ± 0.039 (5) | 0.646 ± 0.039 (5) |" in page
    assert "| `head` | 0.200 (1) |\n\n`full` and `bitfit` are those of part `main`." in page
    assert "1 run at a time" in page
    assert "precision fp32" in page
    assert "shared its cores" not in page


def test_the_earlier_study_is_shown_whole() -> None:
    """Its numbers without one of ours too; where only the zoo has a task, its single seed."""
    earlier = tables.read_earlier(ROOT / "docs/results/earlier_study.csv")
    others = [run_of("bitfit", 0.9, epochs=9.0), run_of("bitfit", 0.7)]
    parts = zip(("gap", "main"), others, strict=True)
    runs = [run.model_copy(update={"part": part}) for part, run in parts]
    single = run_of("head", 0.4, train_rows=99).model_copy(update={"part": "zoo"})
    assert single.outcome is not None
    fields = {"task": "qnli", "strategy": "full"}
    runs.append(single.model_copy(update={"outcome": single.outcome.model_copy(update=fields)}))
    lines = tables.earlier_table(earlier, make_cells(runs)).splitlines()
    marks = {(row["task"], row["strategy"], row["train_rows"]) for row in earlier}
    assert len(lines) == 2 + len(marks)
    (qnli,) = [line for line in lines if line.startswith("| qnli | `full`")]
    assert qnli.endswith("| all | 0.890 ± 0.005 | 3e-05 | 0.400 (1) | 0.002 | 99 |")
    assert next(line for line in lines if line.endswith("|  |  |  |")).startswith("| cola | `full`")
    (rte,) = [line for line in lines if line.startswith("| rte | `bitfit` | all")]
    assert "0.700 (1)" in rte, "the main part goes before one with other options"


def test_the_page_says_that_runs_at_a_time_share_the_machine(tmp_path: Path) -> None:
    run = run_of("bitfit", 0.5)
    assert run.outcome is not None
    machine = run.outcome.machine.model_copy(update={"workers": 2})
    run = run.model_copy(update={"outcome": run.outcome.model_copy(update={"machine": machine})})
    shutil.copy(ROOT / "docs/results/earlier_study.csv", tmp_path)
    append_run(tmp_path / "runs.jsonl", run)
    report.report(tmp_path, tmp_path, tmp_path / "study.json")
    page = (tmp_path / "README.md").read_text()
    assert "2 runs at a time, and whatever else the machine did, shared its cores" in page
    assert "| `bitfit` | 0.500 (1) |" in page


def test_each_backbone_has_tables_and_figures_of_its_own(runs: list[Run], tmp_path: Path) -> None:
    """With one strategy on one task the last backbone would else stand for both."""
    shutil.copy(ROOT / "docs/results/earlier_study.csv", tmp_path)
    large = run_of("full", 0.9, backbone="hub/large")
    assert large.outcome is not None
    outcome = large.outcome.model_copy(update={"backbone": "hub/large", "seconds": 99.0})
    for run in [*runs, large.model_copy(update={"outcome": outcome})]:
        append_run(tmp_path / "runs.jsonl", run)
    written = report.report(tmp_path, tmp_path, tmp_path / "study.json")
    page = (tmp_path / "README.md").read_text()
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")}
    small, big = "0.626 ± 0.024 (5)", "0.900 (1)"
    for title in ("Part `main` on {}", "Beside the earlier study on {}"):
        assert small in sections[title.format("tiny")]
        assert big not in sections[title.format("tiny")]
        assert big in sections[title.format("hub/large")]
        assert small not in sections[title.format("hub/large")]
    assert "| 99 |" in sections["Costs on hub/large"]
    assert "| 99 |" not in sections["Costs on tiny"]
    assert {"scores.svg", "scores-hub-large.svg", "low_data.svg"} <= {path.name for path in written}
    assert "(scores-hub-large.svg)" in page


@pytest.mark.parametrize(("seeds", "said"), [(5, ""), (6, "1 of its 6 runs are missing")])
def test_an_unfinished_study_is_called_one(
    runs: list[Run], tmp_path: Path, seeds: int, said: str
) -> None:
    shutil.copy(ROOT / "docs/results/earlier_study.csv", tmp_path)
    part = f'name = "main"\ntasks = ["rte"]\nfreeze = ["bitfit"]\nseeds = {seeds}\nrates = [0.002]'
    (tmp_path / "study.toml").write_text(f"[[part]]\n{part}\n")
    for run in runs[5:10]:
        append_run(tmp_path / "runs.jsonl", run)
    report.report(tmp_path, tmp_path, tmp_path / "study.json")
    page = (tmp_path / "README.md").read_text()
    assert said in page
    assert ("The study is not finished" in page) == bool(said)


def test_a_person_s_conclusions_are_the_first_of_the_page(out: Path) -> None:
    page = (out / "README.md").read_text()
    assert page.startswith("# Results of the study\n\n## What follows\n\nNothing yet.\n\n## How ")


def test_equal_lines_give_equal_files(results: Path, out: Path, tmp_path: Path) -> None:
    """All but the conclusions, which this one is made without."""
    lines = shutil.copytree(results, tmp_path / "lines")
    (lines / "conclusions.md").unlink()
    report.report(lines, again := tmp_path / "again", again / "study.json")
    first, second = ({p.name: p.read_bytes() for p in made.iterdir()} for made in (out, again))
    assert len(first) == 3 + 2 * 6 + 1
    page = first["README.md"].replace(b"## What follows\n\nNothing yet.\n\n", b"")
    assert first | {"README.md": page} == second
    assert first != second


def test_a_study_of_the_command_line_has_a_report_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the earlier study, and without touching what the server ships."""
    shipped = tmp_path / "shipped.json"
    monkeypatch.setattr("deltas.publish.study.study_path", lambda: shipped)
    runs = [run_of(strategy, 0.5) for strategy in ("bitfit", "head")]
    for run in runs:
        append_run(tmp_path / "runs.jsonl", run.model_copy(update={"part": "command line"}))
    assert report.main(["--results", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "| `head` | 0.500 (1) |" in page
    for absent in ("earlier study", "study.toml", "## Figures"):
        assert absent not in page
    assert (tmp_path / "study.json").is_file()
    assert not shipped.exists()


def test_without_runs_there_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--results", str(tmp_path)]) == 2
    assert "has no finished run; make some: python -m training.sweep" in capsys.readouterr().err


def test_the_committed_report_is_that_of_the_committed_lines(tmp_path: Path) -> None:
    folder = ROOT / report.RESULTS
    if not (folder / "runs.jsonl").exists():
        assert not (folder / "README.md").exists(), "a report without the lines it is made of"
        return
    written = report.report(folder, tmp_path, tmp_path / "study.json")
    for path in written:
        if path.suffix in {".md", ".csv", ".svg"}:
            assert path.read_text() == (folder / path.name).read_text(), "run make report"
        assert path.name == "study.json" or (folder / path.name).exists(), "run make report"
    assert (tmp_path / "study.json").read_bytes() == study_path().read_bytes()
