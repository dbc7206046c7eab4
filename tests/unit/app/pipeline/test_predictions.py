"""Logits to predictions, one case a kind of task."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadResultError
from app.pipeline import RowLogits
from app.pipeline.predictions import scores_of, to_predictions
from deltas import TaskSpec, task_scores
from deltas.manifest import DecisionRule, TaskKind


def task(kind: str, *labels: str) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "t", "kind": kind, "labels": labels, "text_fields": ["x"], "max_length": 8}
    )


def predict(
    spec: TaskSpec, *logits: float, top_k: int | None = None, truncated: bool = False
) -> dict[str, Any]:
    (prediction,) = to_predictions(spec, [RowLogits(list(logits), truncated)], top_k)
    return prediction.model_dump()


def test_single_label_is_a_softmax() -> None:
    answer = predict(task("single_label", "a", "b"), 0.0, math.log(3))
    assert answer == {
        "label": "b",
        "decision": "b",
        "score": pytest.approx(0.75),
        "scores": {"a": pytest.approx(0.25), "b": pytest.approx(0.75)},
        "truncated": False,
    }


def test_multi_label_is_sigmoids_with_a_threshold() -> None:
    answer = predict(task("multi_label", "a", "b", "c"), 0.0, -2.0, 2.0, truncated=True)
    assert answer["labels"] == ["a", "c"], "half is enough"
    assert answer["scores"]["b"] == pytest.approx(1 / (1 + math.exp(2)))
    assert answer["truncated"] is True


def test_no_label_may_apply() -> None:
    assert predict(task("multi_label", "a", "b"), -1.0, -1.0)["labels"] == []


def test_regression_is_the_value_itself() -> None:
    assert predict(task("regression"), 3.25, top_k=5) == {
        "value": 3.25,
        "decision": 3.25,
        "truncated": False,
    }


def decide(spec: TaskSpec, rule: DecisionRule, *logits: float) -> dict[str, Any]:
    (prediction,) = to_predictions(spec, [RowLogits(list(logits), False)], None, rule)
    return prediction.model_dump()


@pytest.mark.parametrize(
    ("rule", "logits", "decision"),
    [
        (DecisionRule(limit=0.74), (0.0, math.log(3)), "b"),
        (DecisionRule(limit=0.76), (0.0, math.log(3)), None),
        (DecisionRule(confidence="max_logit", limit=2.0), (2.0, -9.0), "a"),
        (DecisionRule(confidence="max_logit", limit=2.0), (1.9, -9.0), None),
    ],
)
def test_a_row_below_the_limit_has_no_decision_but_keeps_its_label(
    rule: DecisionRule, logits: tuple[float, ...], decision: str | None
) -> None:
    answer = decide(task("single_label", "a", "b"), rule, *logits)
    assert answer["decision"] == decision
    assert answer["label"] == "ab"[logits[1] > logits[0]]


def test_labels_reach_their_own_thresholds() -> None:
    rule = DecisionRule(thresholds=(0.6, 0.1))
    answer = decide(task("multi_label", "a", "b"), rule, 0.0, -2.0)
    assert answer["decision"] == answer["labels"] == ["b"]


def test_top_k() -> None:
    spec = task("single_label", "a", "b", "c")
    assert list(predict(spec, 1.0, 3.0, 2.0)["scores"]) == ["a", "b", "c"]
    assert list(predict(spec, 1.0, 3.0, 2.0, top_k=2)["scores"]) == ["b", "c"]
    assert list(predict(spec, 1.0, 3.0, 2.0, top_k=9)["scores"]) == ["b", "c", "a"]


def test_of_equal_scores_the_first_label_wins() -> None:
    assert predict(task("single_label", "a", "b"), 1.0, 1.0)["label"] == "a"


def test_huge_logits_are_no_problem() -> None:
    answer = predict(task("single_label", "a", "b"), 1e30, -1e30)
    assert answer["scores"] == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("logits", [[math.nan, 0.0], [math.inf, 0.0], [0.0], [], [0.0] * 3])
def test_logits_that_are_no_answer_are_refused(logits: list[float]) -> None:
    rows = [RowLogits([0.0, 0.0], False), RowLogits(logits, False)]
    with pytest.raises(BadResultError, match="row 1 of 't'"):
        to_predictions(task("single_label", "a", "b"), rows, None)


def test_rows_keep_their_order() -> None:
    rows = [RowLogits([0.0, 1.0], False), RowLogits([1.0, 0.0], True)]
    answers = [p.model_dump() for p in to_predictions(task("single_label", "a", "b"), rows, 1)]
    assert [(answer["label"], answer["truncated"]) for answer in answers] == [
        ("b", False),
        ("a", True),
    ]


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@given(logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=6))
def test_scores_equal_the_scores_of_tensors(kind: TaskKind, logits: list[float]) -> None:
    expected = task_scores(kind, torch.tensor([logits]))[0].tolist()
    assert scores_of(kind, logits) == pytest.approx(expected, rel=1e-5, abs=1e-7)
