"""The report: the numbers of its tables worked out by hand, and equal files from equal lines."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from deltas.publish.study import study_path
from tests.unit.training.study.test_aggregates import run_of, study_runs
from training import report
from training.study import figures, tables
from training.study.aggregates import make_cells
from training.study.results import Run, append_run

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Two strategies with five seeds, a second rate of bitfit, and two smaller sizes."""
    return study_runs()


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


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out where a test reads the page alone: to draw them takes seconds."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])


def test_the_page_has_the_numbers_of_the_lines(out: Path) -> None:
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


@pytest.mark.usefixtures("without_figures")
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


@pytest.mark.usefixtures("without_figures")
def test_an_earlier_study_may_be_in_another_folder(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--results", str(results), "--out", str(tmp_path), "--earlier"]
    assert report.main([*words, str(tmp_path / "none.csv")]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
    numbers = "part,task,strategy,learning_rate,train_rows,mean,spread\n"
    (tmp_path / "other.csv").write_text(f"{numbers}methods,rte,bitfit,0.5,,0.123,0.045\n")
    assert report.main([*words, str(tmp_path / "other.csv")]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "| rte | `bitfit` | all | 0.123 ± 0.045 | 0.5 | 0.646" in page


@pytest.mark.usefixtures("without_figures")
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
@pytest.mark.usefixtures("without_figures")
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.toml", b"[[part]\n", "study.toml: can't be read as a study"),
        ("conclusions.md", b"\xff\xfe", "conclusions.md: not text in UTF-8"),
        ("earlier_study.csv", b"\xff\xfe", "earlier_study.csv: not text in UTF-8"),
        ("earlier_study.csv", b"a,b\n1", "no column task, strategy, train_rows, learning_rate, "),
        (
            "earlier_study.csv",
            b"task,strategy,train_rows,learning_rate,mean,spread\nrte,full,,1e-4,x,0.1\n",
            "earlier_study.csv, row 1, column 'mean': 'x' is no mean; correct it",
        ),
        (
            "earlier_study.csv",
            b"task,strategy,train_rows,learning_rate,mean,spread\nrte,full,1.5\n",
            "row 1, column 'train_rows': '1.5' is no train_rows",
        ),
    ],
)
def test_a_damaged_file_of_the_folder_leaves_no_half_report(
    name: str, content: bytes, message: str, results: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, out = tmp_path / "results", tmp_path / "out"
    shutil.copytree(results, folder)
    (folder / name).write_bytes(content)
    assert report.main(["--results", str(folder), "--out", str(out)]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not out.exists()


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
