"""Bodies of requests: what is taken, what is not, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.http.schemas import FanOutRequest, PredictRequest


@pytest.mark.parametrize(
    "inputs", ["x", "", ["x", "y"], {"a": "b"}, [{"a": "b"}], 5, None, [], [[1]]]
)
def test_rows_pass_as_they_are(inputs: Any) -> None:
    """Accept rows of any form: `app.pipeline`, which knows the task, checks them."""
    assert PredictRequest(inputs=inputs).inputs == inputs


def test_optional_fields_default_to_none() -> None:
    request = PredictRequest.model_validate({"inputs": "x"})
    assert (request.strategy, request.version, request.top_k) == (None, None, None)
    assert PredictRequest.model_validate({"inputs": "x", "strategy": None}) == request


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "Field required"),
        ({"inputs": "x", "top_k": 0}, "greater than or equal to 1"),
        ({"inputs": "x", "top_k": 2.0}, "valid integer"),
        ({"inputs": "x", "strategy": 1}, "valid string"),
        ({"inputs": "x", "version": ""}, "at least 1 character"),
        ({"inputs": "x", "topk": 1}, "Did you mean 'top_k'"),
        ({"input": "x"}, "Did you mean 'inputs'"),
    ],
)
def test_wrong_bodies_are_refused(body: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PredictRequest.model_validate(body)


def test_a_fan_out_needs_a_target() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        FanOutRequest.model_validate({"inputs": "x", "targets": []})
    request = FanOutRequest.model_validate(
        {"inputs": "x", "targets": [{"task": "a"}, {"task": "a", "strategy": "b", "version": "c"}]}
    )
    assert [target.strategy for target in request.targets] == [None, "b"]


def test_the_schema_of_a_row_is_told() -> None:
    schema = PredictRequest.model_json_schema()["properties"]["inputs"]
    kinds = [option.get("type") for option in schema["anyOf"]]
    assert kinds == ["string", "object", "array"]
