"""Labels of every kind of task are named, scored and ordered."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInputError
from app.http.routes.clients.answers import best_first, labels_of, outputs_of
from tests.factories import TOY_TASKS

logits_of_four = st.lists(st.floats(-50, 50), min_size=4, max_size=4)


@given(logits_of_four)
def test_the_best_label_is_first_whatever_the_function(logits: list[float]) -> None:
    task = TOY_TASKS["toymulti"]
    for function in (None, "softmax", "sigmoid", "none"):
        found = best_first(task, logits, function)
        scores = [each["score"] for each in found]
        assert scores == sorted(scores, reverse=True)
        assert sorted(each["label"] for each in found) == sorted(task.labels)
        assert best_first(task, logits, function, 2) == found[:2]


def test_functions_are_those_of_the_kind_unless_named() -> None:
    one, several = TOY_TASKS["toy2"], TOY_TASKS["toymulti"]
    assert math.isclose(sum(outputs_of(one, [1.0, 2.0])), 1.0)
    assert outputs_of(several, [0.0] * 4) == [0.5] * 4
    assert outputs_of(several, [0.0] * 4, "softmax") == [0.25] * 4
    assert outputs_of(one, [0.0, 0.0], "sigmoid") == [0.5, 0.5]
    assert outputs_of(one, [1.0, 2.0], "none") == [1.0, 2.0]


def test_a_regression_has_one_label_with_its_value() -> None:
    task = TOY_TASKS["toyreg"]
    assert labels_of(task) == ("LABEL_0",)
    assert best_first(task, [3.5]) == best_first(task, [3.5], "none")
    assert best_first(task, [3.5]) == [{"label": "LABEL_0", "score": 3.5}]
    for function in ("softmax", "sigmoid"):
        with pytest.raises(InvalidInputError, match="a regression, which has no scores"):
            outputs_of(task, [3.5], function)
