"""Every form in which MLflow sends rows becomes our form, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from app.errors import InvalidInputError
from app.http.routes.clients.mlflow import InvocationsRequest, rows_of
from tests.factories import TOY_TASKS

ONE, PAIR = TOY_TASKS["toy2"], TOY_TASKS["toy3"]
FRAME = pd.DataFrame({"premise": ["a", "b"], "hypothesis": ["c", "d"]})
ROWS = [{"premise": "a", "hypothesis": "c"}, {"premise": "b", "hypothesis": "d"}]


def rows(task: Any, **body: Any) -> Any:
    return rows_of(task, InvocationsRequest.model_validate(body))


def test_frames_of_pandas_become_rows() -> None:
    assert rows(PAIR, dataframe_split=FRAME.to_dict(orient="split")) == ROWS
    assert rows(PAIR, dataframe_records=FRAME.to_dict(orient="records")) == ROWS
    assert rows(PAIR, inputs=FRAME.to_dict(orient="list")) == ROWS
    unnamed = pd.DataFrame(FRAME.to_numpy())
    assert rows(PAIR, dataframe_split=unnamed.to_dict(orient="split"), params=None) == ROWS


def test_lists_and_single_rows_stay() -> None:
    assert rows(ONE, inputs=["a", "b"], params={}) == ["a", "b"]
    assert rows(ONE, instances="a") == "a"
    assert rows(PAIR, inputs=ROWS[0]) == ROWS[0]
    assert rows(ONE, inputs=[["a"], ["b"]]) == [{"sentence": "a"}, {"sentence": "b"}]
    assert rows(PAIR, instances=[["a", "c"]]) == ROWS[:1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "has none of them"),
        ({"inputs": ["a"], "instances": ["b"]}, "has inputs and instances"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": []}}, "has a name twice"),
        ({"dataframe_split": {"columns": ["a"], "data": [["x", "y"]]}}, "2 values for 1 columns"),
        (
            {"dataframe_split": {"columns": ["a"], "data": [["x"]], "index": [0, 1]}},
            "2 names for 1 rows",
        ),
        ({"inputs": {"a": ["x"], "b": ["y", "z"]}}, "a list of equal length for each column"),
        ({"inputs": {"a": ["x"], "b": "y"}}, "a list of equal length for each column"),
        ({"inputs": [["a", "b", "c"]]}, "rows of 3 values, but 'toy3' takes"),
    ],
)
def test_wrong_frames_are_refused(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        rows(PAIR, **body)
    assert reason in str(caught.value)


def test_nothing_is_ignored() -> None:
    for body in ({"inputs": "a", "parameters": {}}, {"inputs": "a", "params": {"top_k": 1}}):
        with pytest.raises(ValidationError, match="is not a field of this request"):
            InvocationsRequest.model_validate(body)
