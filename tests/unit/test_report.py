"""The report: the numbers of its tables worked out by hand, and equal files from equal lines."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from deltas.benchmark import study_path
from tests.unit.test_results import make_run
from training import report
from training.cells import make_cells
from training.results import Run, append_run
from training.significance import compare, holm, sign_flip

ROOT = Path(__file__).parents[2]
FULL = (0.60, 0.62, 0.61, 0.66, 0.64)
BITFIT = (0.61, 0.60, 0.66, 0.67, 0.69)


def run_of(strategy: str, score: float, selection: float = 0.5, **options: Any) -> Run:
    """A run of a strategy; its outcome says so too."""
    run = make_run(score, selection, freeze=strategy, **options)
    assert run.outcome is not None
    fields = {"strategy": strategy, "learning_rate": run.options["lr"]}
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
    assert (bitfit.rate, bitfit.rates) == (0.002, 2), "0.99 on the dev set plays no part"
    assert tuple(bitfit.scores.values()) == BITFIT
    assert bitfit.mean == pytest.approx(0.646)
    assert bitfit.spread == pytest.approx(0.0391152144, abs=1e-9)
    assert cells[3].spread is None


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
    shifted = [run_of("head", FULL[seed] - 0.1, seed=seed) for seed in (4, 2, 0)]
    few = [run_of("layernorm", 0.9, seed=seed) for seed in (0, 1)]
    (found,) = compare(make_cells([*full, *shifted, *few]))
    assert (found.method, found.seeds) == ("head", 3)
    assert found.difference == pytest.approx(-0.1)
    assert found.p == 0.0
    assert found.p_signs == 0.25


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


def test_a_person_s_conclusions_are_part_of_the_page(out: Path) -> None:
    page = (out / "README.md").read_text()
    assert page.index("## What follows") < page.index("## Part `main`")


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
