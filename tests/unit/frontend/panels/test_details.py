"""What the panel of one delta says about its reliability and the history of its run."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.errors import ServerError
from frontend.models import DeltaDetails, Reliability
from frontend.panels.details import delta_facts, history_sentences, reliability_sentences
from tests.factories import RELIABILITY, RUN_HISTORY, benchmark_history, benchmark_row


def details(**parts: Any) -> DeltaDetails:
    """A delta whose manifest has these parts of its metrics and training facts."""
    metrics = {"validation": {"rows": 20, "reliability": parts.get("reliability")}}
    return DeltaDetails("0" * 16, 100, {"metrics": metrics, "training": parts.get("training", {})})


def test_what_a_manifest_lacks_is_none() -> None:
    assert details().reliability("validation") is None
    assert details().reliability("elsewhere") is None
    assert details().history is None
    assert DeltaDetails("0" * 16, 100, {}).history is None


def test_what_a_manifest_has_is_read() -> None:
    given = details(reliability=RELIABILITY, training={"history": RUN_HISTORY})
    found, history = given.reliability("validation"), given.history
    assert found == Reliability(**RELIABILITY)
    assert history == benchmark_history()
    with pytest.raises(ServerError, match="counts"):
        details(reliability={**RELIABILITY, "counts": "many"}).reliability("validation")


@pytest.mark.parametrize(("kind", "noun"), [("single_label", "answers"), ("multi_label", "labels")])
def test_reliability_is_said_with_numbers(kind: str, noun: str) -> None:
    said = reliability_sentences(Reliability(**RELIABILITY), kind, "2,000 rows of validation")
    assert f"Of 1,200 {noun} with a probability of about 90 %, 87 % were right." in said
    assert (
        "calibration error on 2,000 rows of validation: 0.041 (0.125 before calibration)." in said
    )


def test_unchanged_and_unlikely_answers_are_said_plainly() -> None:
    found = Reliability(0.04, 0.04, (30, 0), (0.25, 0.0), (0.2, 0.0))
    said = reliability_sentences(found, "single_label", "30 rows of validation")
    assert "Of 30 answers with a probability of about 25 %, 20 % were right." in said
    assert "before calibration" not in said


def test_the_history_says_which_state_was_kept() -> None:
    said = history_sentences(benchmark_history(), "matthews")
    assert said == (
        "The loss of the train rows went from 0.700 to 0.300 in 400 steps. "
        "The state after step 200 was kept: Matthews correlation 0.500 on the selection rows."
    )


def test_a_run_that_never_improved_says_so() -> None:
    history = benchmark_history(metric=(0.6, 0.5, 0.4))
    assert "No step improved on the starting head, which was kept: Accuracy 0.600" in (
        history_sentences(history, "accuracy")
    )


def test_of_equal_metrics_the_lower_loss_was_kept() -> None:
    history = benchmark_history(metric=(0.5, 0.5, 0.5), loss=(0.7, 0.5, 0.6))
    assert "after step 200 was kept" in history_sentences(history, "accuracy")


def test_without_evaluations_only_the_loss_is_said() -> None:
    history = benchmark_history(step=(), loss=(), metric=())
    assert history_sentences(history, "accuracy").endswith("in 400 steps.")


def test_a_solved_head_has_no_rate_and_no_epochs() -> None:
    assert ("Head", "solved without steps, seed 0") in delta_facts(benchmark_row(epochs=0))
    assert "3 epochs, seed 0" in dict(delta_facts(benchmark_row(epochs=3)))["Learning rate"]
