"""Estimates of a study: the cost of a run, and the finished runs that tell its duration."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.training.study.test_results import make_run
from training.options import default_epochs
from training.study.estimate import GUESSED_SECONDS, Estimate, forward_passes
from training.study.results import Run

RTE, DEV = 2490, 277


def run(seconds: float, **options: object) -> Run:
    stated: dict[str, Any] = {"epochs": 1.0, "train_rows": 100} | options
    made = make_run(**stated)
    fields = made.model_dump()
    fields["outcome"]["seconds"] = seconds
    return Run(**fields)


def test_estimates_come_from_the_most_alike() -> None:
    runs = [run(10, freeze="bitfit"), run(40, freeze="full"), run(1, task="cola", freeze="head")]
    estimate = Estimate({run.key: run for run in runs})
    alike = {"task": "rte", "epochs": 1.0}

    def relative(first: dict[str, Any], second: Run) -> float:
        return forward_passes(alike | first) / forward_passes(second.options)

    for first, second in (
        ({"freeze": "bitfit", "train_rows": 200, "epochs": 2.0}, runs[0]),
        ({"freeze": "bitfit:query", "train_rows": 100}, runs[0]),
        ({"freeze": "full"}, runs[1]),
        ({"freeze": "head", "task": "cola"}, runs[2]),
    ):
        assert second.outcome is not None
        expected = second.outcome.seconds * relative(first, second)
        assert estimate.seconds(alike | first) == pytest.approx(expected)
        assert estimate.basis(alike | first) == "from the finished runs"
    between = estimate.seconds(alike | {"freeze": "layernorm", "train_rows": 100})
    assert 10 < between < 40, "two strategies of the task are equally alike"


def test_another_backbone_tells_nothing() -> None:
    made = run(10, freeze="bitfit", backbone="tiny")
    estimate = Estimate({made.key: made})
    other = {"task": "rte", "freeze": "bitfit", "backbone": "large", "epochs": 1.0}
    assert estimate.seconds(other) == forward_passes(other) * GUESSED_SECONDS
    assert estimate.basis(other) == "a guess: nothing is measured yet"
    assert estimate.basis(other | {"backbone": "tiny"}) == "from the finished runs"


def test_a_finished_run_corrects_what_the_study_assumes_for_all_tasks() -> None:
    assumed = {"rte": 0.5, "cola": 0.1}
    options = {"task": "cola", "freeze": "bitfit", "epochs": 2.0}
    before = Estimate({}, assumed)
    assert before.basis(options) == "by the study file's assumption"
    assert before.seconds(options) == pytest.approx(0.1 * forward_passes(options))
    made = run(0.0, freeze="bitfit")
    twice = run(2 * 0.5 * forward_passes(made.options), freeze="bitfit")
    after = Estimate({twice.key: twice}, assumed)
    assert after.seconds(options) == pytest.approx(2 * before.seconds(options))


def test_a_run_costs_its_steps_and_its_evaluations() -> None:
    """Ten evaluations an epoch on a fifth of the rows cost as much as two passes over all."""
    options = {"task": "rte", "freeze": "bitfit", "epochs": 3, "evals_per_epoch": 10}
    options |= {"selection_share": 0.2, "train_rows": 1000}
    assert forward_passes(options) == 3 * 3 * 800 + 30 * 200 + DEV
    assert forward_passes(options | {"freeze": "full"}) == 5 * 3 * 800 + 30 * 200 + DEV
    assert forward_passes(options | {"freeze": "bitfit+top:1"}) == 5 * 3 * 800 + 30 * 200 + DEV
    assert forward_passes(options | {"max_selection_rows": 50}) == 3 * 3 * 950 + 30 * 50 + DEV
    assert forward_passes(options | {"freeze": "head"}) == 1000 + DEV
    plain = forward_passes({"task": "rte", "freeze": "bitfit"})
    epochs = default_epochs(2241, 2241 * 30)
    assert plain == pytest.approx((3 * epochs * 0.9 + round(epochs) * 0.1) * RTE + DEV)
