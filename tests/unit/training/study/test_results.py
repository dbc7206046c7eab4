"""Lines of finished runs: written whole, read back equal, and refused by line number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deltas import SplitMetrics
from training.errors import DataError
from training.study.results import History, Machine, Run, RunOutcome, append_run, read_runs, run_key

MakeRun = Any


def outcome(score: float, selection: float, loss: float = 0.5) -> RunOutcome:
    """Return an outcome of a run on rte with bitfit."""
    return RunOutcome(
        task="rte",
        strategy="bitfit",
        metric="accuracy",
        scores={
            "selection": SplitMetrics(rows=20, values={"accuracy": selection, "loss": loss}),
            "validation": SplitMetrics(rows=30, values={"accuracy": score}),
        },
        history=History(step=(1, 2), train_loss=(0.7, 0.6), loss=(0.7, 0.5), metric=(0.4, 0.5)),
        train_rows=180,
        selection_rows=20,
        data="folder",
        data_note="",
        data_digest="0" * 64,
        epochs=1.0,
        steps=2,
        batch_size=32,
        learning_rate=0.002,
        head_learning_rate=0.01,
        precision="fp32",
        seconds=3.5,
        resumed=False,
        peak_bytes=10**9,
        trained=100,
        total=10_000,
        delta_bytes=4_000,
        backbone="tiny",
        fingerprint="sha256:0",
        machine=Machine(cpu="a", cores=2, threads=1, workers=1, system="Linux"),
        versions={"torch": "2"},
        git_commit=None,
    )


def make_run(score: float = 0.6, selection: float = 0.6, **options: Any) -> Run:
    """A finished run with these options."""
    stated = {"task": "rte", "freeze": "bitfit", "lr": 0.002, "seed": 0} | options
    return Run(
        key=run_key(stated),
        part="main",
        options=stated,
        command="python -m training.fit",
        outcome=outcome(score, selection),
    )


def test_lines_are_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    assert read_runs(path) == {}
    runs = [make_run(seed=seed) for seed in range(3)]
    for run in runs:
        append_run(path, run)
    assert list(read_runs(path).values()) == runs
    assert len(path.read_bytes().splitlines()) == 3


def test_the_last_line_of_a_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    run = make_run()
    failed = Run(**run.model_dump() | {"outcome": None, "error": "no memory"})
    append_run(path, failed)
    append_run(path, run)
    assert list(read_runs(path).values()) == [run]


def test_a_line_that_was_cut_off_is_passed_over_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first, second = make_run(seed=0), make_run(seed=1)
    append_run(path, first)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert list(read_runs(path).values()) == [first]
    append_run(path, second)
    assert list(read_runs(path).values()) == [first, second]
    assert path.read_bytes().startswith(whole)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_run(path, make_run(seed=0))
    append_run(path, make_run(seed=1))
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1].replace('"seconds":3.5', '"seconds":"x"') + "\n")
    with pytest.raises(DataError, match=r"row 2: .*outcome\.seconds.*number") as caught:
        read_runs(path)
    assert caught.value.path == path


def test_the_key_depends_on_stated_options_only() -> None:
    options = {"task": "rte", "lr": 0.001, "seed": 0}
    assert run_key(options) == run_key(dict(reversed(options.items())))
    assert run_key(options) == run_key(options | {"out": "elsewhere", "data": "hub"})
    assert run_key(options) != run_key(options | {"seed": 1})
    assert run_key(options) != run_key(options | {"evals": 3})
    earlier = {"pooling": "cls", "pairs": "joint", "head_start": "random"}
    assert run_key(options) == run_key(options | earlier)
    assert run_key(options) != run_key(options | earlier | {"head_start": "solved"})


def test_a_diverged_run_differs_from_a_killed_one() -> None:
    from training.errors import TrainingError
    from training.run.loop.loop import _check_finite

    with pytest.raises(TrainingError) as caught:
        _check_finite(7, float("nan"))
    fields = make_run().model_dump() | {"outcome": None}
    assert Run(**fields | {"error": str(caught.value)}).diverged
    assert not Run(**fields | {"error": "its process ended with exit code -9"}).diverged
    assert not make_run().diverged


def test_a_run_ends_in_one_way() -> None:
    fields = make_run().model_dump()
    with pytest.raises(ValueError, match="either an outcome or an error"):
        Run(**fields | {"error": "and an error"})
    with pytest.raises(ValueError, match="either an outcome or an error"):
        Run(**fields | {"outcome": None})
    with pytest.raises(ValueError, match="not equally long"):
        History(step=(1, 2), train_loss=(0.1,), loss=(0.1,), metric=(0.1,))


def test_results_are_read_from_files_only(tmp_path: Path) -> None:
    """Reading a pipe waits for a writer, and reading /dev/full does not end."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", tmp_path, Path(os.devnull)):
        with pytest.raises(DataError, match="not a file; name a file of results"):
            read_runs(path)
