"""Plans of sweeps, their estimates, and misuse. Real ones: `tests/integration`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.training.study.test_results import make_run
from training import sweep
from training.study.results import History, append_run


@pytest.mark.parametrize("option", ["--out", "--work"])
def test_two_sweeps_do_not_share_results_nor_the_folder_of_their_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    shared = tmp_path / "shared"
    (tmp_path / "rte").mkdir()
    table = pa.table({"sentence1": ["a"] * 40, "sentence2": ["b"] * 40, "label": [0, 1] * 20})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / "rte" / f"{split}.parquet")
    words = ["--tasks", "rte", "--freeze", "head", "--data", str(tmp_path)]
    words += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with sweep._locked(shared, option):
        assert sweep.main([*words, option, str(shared)]) == 2
    said = capsys.readouterr().err
    assert f"another sweep is using {shared}; wait for it, or give another {option}" in said


def dry_run(out: Path, num_seeds: int) -> list[str]:
    """Arguments that list the runs of one strategy with two rates."""
    words = ["--tasks", "rte", "--freeze", "bitfit", "--rates", "0.002,0.1"]
    words += ["--seeds", str(num_seeds), "--set", "epochs=1"]
    return [*words, "--out", str(out), "--dry-run"]


def test_dry_run_lists_the_runs_and_their_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.jsonl"
    words = dry_run(out, num_seeds=2)
    assert sweep.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert said[2].split()[-7:-2] == ["lr", "best", "of", "0.002,", "0.1"]
    assert said[3].startswith("3 of 3 runs to make, about 4 min with 1 worker (a guess")
    append_run(out, make_run(freeze="bitfit", epochs=1.0, train_rows=None))
    assert sweep.main(words) == 0
    assert "(from the finished runs)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["--tasks", "rte", "--freeze", "head", "--rates", "0.1"], "1 of 1"),
        (["--study", "study.toml"], "0 of 1"),
        ([], "0 of 1"),
    ],
)
def test_a_study_of_the_command_line_leaves_the_committed_results_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    missing: str,
) -> None:
    """One run is committed; a study of the command line looks for it elsewhere."""
    monkeypatch.chdir(tmp_path)
    append_run(sweep.RUNS, make_run(freeze="head", lr=0.1))
    declared = '[[part]]\nname = "a"\ntasks = ["rte"]\nfreeze = ["head"]\nrates = [0.1]\n'
    for path in (sweep.STUDY, Path("study.toml")):
        path.write_text(declared)
    assert sweep.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{missing} runs to make")


FILE = """
out = "from/file.jsonl"
seconds_a_pass = { rte = 10.0 }
[options]
epochs = 1
[[part]]
name = "a"
tasks = ["rte", "cola"]
freeze = ["head"]
rates = [0.1]
seeds = 2
"""


@pytest.mark.parametrize(
    ("words", "where", "listed"),
    [
        ([], "from/file.jsonl", ["rte 0", "rte 1", "cola 0", "cola 1"]),
        (["--tasks", "cola", "--seeds", "1"], "from/file.jsonl", ["cola 0"]),
        (["--seeds", "1", "--set", "epochs=3"], str(sweep.COMMAND_LINE_RUNS), ["rte 0", "cola 0"]),
    ],
)
def test_a_file_may_be_narrowed_and_says_where_its_results_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    where: str,
    listed: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(FILE)
    words = ["--study", "study.toml", "--dry-run", *words]
    assert sweep.main(words) == 0
    *runs, last = capsys.readouterr().out.splitlines()
    assert [f"{run.split()[1]} {run.split()[4]}" for run in runs] == listed
    epochs = 3 if "--set" in words else 1
    made = make_run(task="cola", freeze="head", lr=0.1, epochs=float(epochs))
    append_run(Path(where), made)
    assert sweep.main(words) == 0
    again = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{len(listed)} of {len(listed)} runs to make")
    assert again.startswith(f"{len(listed) - 1} of {len(listed)} runs to make")


def test_a_dry_run_sums_each_part_and_names_the_basis_of_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    second = '[[part]]\nname = "b"\ntasks = ["wnli"]\nfreeze = ["head"]\n'
    Path("study.toml").write_text(FILE + second)
    words = ["--study", "study.toml", "--tasks", "rte,wnli", "--dry-run", "--workers", "2"]
    assert sweep.main(words) == 0
    *_, part_a, part_b, last = capsys.readouterr().out.splitlines()
    rows = {"rte": 2490 + 277, "wnli": 635 + 71}  # of a head alone each row is computed once
    hours, minutes = divmod(round(rows["rte"] * 10 / 60), 60)
    assert part_a == f"a: 2 to make, about {hours} h {minutes} min with 2 workers"
    assert part_b.startswith("b: 1 to make, about 4 s with 2 workers")
    assert last.startswith(f"3 of 3 runs to make, about {hours} h {minutes} min with 2 workers (")
    assert "(a guess: nothing is measured yet; by the study file's assumption)" in last
    assert f"{2 * rows['rte'] + rows['wnli']:,} forward passes of rows" in last


@pytest.mark.parametrize(
    ("freeze", "listed"),
    [
        ("bitfit,head", ["bitfit", "head"]),
        ("bitfit:query,intermediate; head", ["bitfit:intermediate,query", "head"]),
        ("bitfit:query,intermediate;", ["bitfit:intermediate,query"]),
    ],
)
def test_a_strategy_may_have_a_comma(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], freeze: str, listed: list[str]
) -> None:
    words = ["--tasks", "rte", "--freeze", freeze, "--rates", "0.1"]
    assert sweep.main([*words, "--out", str(tmp_path / "runs.jsonl"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert [line.split("rte")[1].split()[0] for line in lines] == listed


def test_dry_run_knows_a_rate_that_was_chosen_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run with the better rate of seed 0 was made: only that of the third seed is missing."""
    out = tmp_path / "runs.jsonl"
    for seed, rate, score in ((0, 0.002, 0.5), (0, 0.1, 0.6), (1, 0.1, 0.4)):
        run = make_run(selection=score, epochs=1.0, seed=seed, lr=rate)
        append_run(out, run)
    assert sweep.main(dry_run(out, num_seeds=3)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2].split()[-5:] == ["seed", "1", "lr", "0.1", "done"]
    assert " seed 2  lr 0.1  " in said[3]
    assert said[-1].startswith("1 of 4 runs to make")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "rte"], "a study without a file needs --tasks and --freeze"),
        (
            ["--study", "a.toml", "--freeze", "head"],
            "--study declares the runs; leave out --fr",
        ),
        (["--study", "a.toml"], "a.toml: can't be read as a study"),
        (["--tasks", "rte", "--freeze", "head", "--set", "colour=red"], "colour: Extra inputs"),
        (["--tasks", "rte", "--freeze", "head", "--set", "lr=1"], "lr has no effect here; give ra"),
        (["--tasks", "rte", "--freeze", "head", "--set", "epochs"], "--set epochs: give an option"),
        (["--tasks", "rte", "--freeze", "head", "--set", "epochs=1,epochs=2"], "twice, 1 and 2"),
        (["--workers", "0"], "'0' is no whole number of at least 1"),
        (["--tasks", "rte", "--freeze", "head", "--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_misuse(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words) in (1, 2)
    assert message in capsys.readouterr().err


def test_the_generated_sample_is_swept_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    words = ["--tasks", "wnli", "--freeze", "head", "--out", str(tmp_path / "runs.jsonl")]
    assert sweep.main(words) == 2
    assert "only the generated sample; set GLUE_DIR" in capsys.readouterr().err


def test_a_history_counts_the_last_line_of_a_step(tmp_path: Path) -> None:
    from training.run.loop.loop import Progress
    from training.study.trial import Recorder

    path = tmp_path / "history.jsonl"
    recorder = Recorder(path)
    recorder(Progress(1, 1.0, None))
    recorder(Progress(2, 2.0, 0.5, {"loss": 0.7}))
    recorder(Progress(3, 4.0, 0.6, {"loss": 0.6}))
    again = Recorder(path)
    again(Progress(3, 4.0, 0.6, {"loss": 0.6}))
    again(Progress(4, 8.0, 0.1, {"loss": 0.123456789}))
    assert again.first_step == 3
    expected = History(
        step=(2, 3, 4),
        train_loss=(1.5, 4.0, 8.0),
        loss=(0.7, 0.6, 0.123457),
        metric=(0.5, 0.6, 0.1),
    )
    assert again.history() == expected
    Recorder(path)(Progress(1, 1.0, None))
    assert not path.exists(), "a run from the start begins a history of its own"
    assert json.loads(expected.model_dump_json())["step"] == [2, 3, 4]
