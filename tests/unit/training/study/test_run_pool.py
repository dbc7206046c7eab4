"""The order and the count of a sweep's runs; the processes are stand-ins that answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.study.test_results import make_run, outcome
from training.study.plan import PlannedRun, make_study, plan
from training.study.results import append_run, read_runs, run_key
from training.study.run_pool import RunPool
from training.study.trial import Trial


class EndedRuns:
    """A runner whose runs have ended before anyone asks; a job is the options of its run.

    Attributes:
        started: options of the runs, in order.
        answers: what a run says, by its learning rate; others have an outcome.
    """

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.answers: dict[float, dict[str, Any]] = {}

    def start(self, trial: Trial) -> dict[str, Any]:
        self.started.append(dict(trial.options))
        return self.started[-1]

    def ended(self, jobs: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return jobs

    def message(self, job: dict[str, Any]) -> dict[str, Any]:
        said = {"outcome": outcome(0.5, 0.5).model_dump(mode="json")}
        return self.answers.get(job["lr"], said)

    def stop(self, jobs: Sequence[dict[str, Any]]) -> None:
        assert not jobs


class StandIn(RunPool):
    """A pool whose runs have answered before anyone asks.

    Attributes:
        started: options of the runs, in order.
        answers: what a run says, by its learning rate; others have an outcome.
    """

    def __init__(
        self,
        planned: list[PlannedRun],
        folder: Path,
        workers: int = 1,
        *,
        retry_failed: bool = False,
    ) -> None:
        options = argparse.Namespace(
            out=folder / "runs.jsonl", work=folder / "work", workers=workers, threads=1,
            data=None, retry_failed=retry_failed, keep_deltas=False,
        )  # fmt: skip
        runner = EndedRuns()
        super().__init__(planned, options, runner=runner)
        self.started = runner.started
        self.answers = runner.answers


def part(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "tasks": ["rte"], "freeze": ["bitfit"]} | fields


def planned(*parts: dict[str, Any]) -> list[PlannedRun]:
    return plan(make_study({"options": {"epochs": 1.0}, "part": list(parts)}, "here"))


def test_a_resumed_sweep_counts_only_missing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finished runs stand below the missing ones: they are no part of what is left."""
    runs = planned(part("main", rates=[0.1], seeds=5))
    for seed in (2, 3, 4):
        append_run(tmp_path / "runs.jsonl", make_run(epochs=1.0, seed=seed, lr=0.1))
    pool = StandIn(runs, tmp_path)
    assert pool.make_all() == 0
    assert [options["seed"] for options in pool.started] == [0, 1]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("[4/5]")
    assert "(1 to make, " in first
    assert second.startswith("[5/5]")
    assert second.endswith("(0 to make)")


def test_one_run_of_two_parts_is_made_once(tmp_path: Path) -> None:
    """Other rates, so another plan; but one of the rates, and the run with it, is the same."""
    runs = planned(part("a", rates=[1e-3]), part("b", rates=[1e-3, 2e-3]))
    assert len(runs) == 3
    pool = StandIn(runs, tmp_path, workers=3)
    assert pool.make_all() == 0
    assert [options["lr"] for options in pool.started] == [1e-3, 2e-3]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
    assert len(read_runs(tmp_path / "runs.jsonl")) == 2


def test_a_killed_run_fails_the_sweep_until_it_is_made_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rate is chosen without the killed run, so the run of seed 1 waits."""
    runs = planned(part("main", rates=[1e-3, 2e-3], seeds=2))
    pool = StandIn(runs, tmp_path)
    pool.answers[2e-3] = {"error": "its process ended with exit code -9"}
    assert pool.make_all() == 1
    assert [(options["lr"], options["seed"]) for options in pool.started] == [(1e-3, 0), (2e-3, 0)]
    said = capsys.readouterr().err
    assert "not made: 1 runs; the runs that choose their learning rates failed" in said
    again = StandIn(runs, tmp_path)
    assert again.make_all() == 1, "an earlier failure is still one"
    assert again.started == []
    assert "1 runs failed; their errors are in" in capsys.readouterr().err
    better = StandIn(runs, tmp_path, retry_failed=True)
    assert better.make_all() == 0
    assert [(options["lr"], options["seed"]) for options in better.started] == [
        (2e-3, 0),
        (1e-3, 1),
    ]
    assert StandIn(runs, tmp_path).make_all() == 0


def test_a_rate_that_diverged_is_out_and_said_at_the_end(tmp_path: Path) -> None:
    runs = planned(part("main", rates=[1e-3, 2e-3], seeds=2))
    pool = StandIn(runs, tmp_path)
    pool.answers[1e-3] = {"error": "training diverged: the loss of step 1 is nan"}
    assert pool.make_all() == 1
    assert [options["lr"] for options in pool.started] == [1e-3, 2e-3, 2e-3]


def test_a_kept_outcome_is_removed_once_it_is_recorded(tmp_path: Path) -> None:
    runs = planned(part("main", rates=[0.1]))
    (run,) = runs
    kept = tmp_path / "work" / run_key(run.with_rate(0.1)) / "outcome.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    pool = StandIn(runs, tmp_path)
    pool._options.keep_deltas = True
    assert pool.make_all() == 0
    assert not kept.exists()
    assert kept.parent.is_dir(), "the deltas stay"
