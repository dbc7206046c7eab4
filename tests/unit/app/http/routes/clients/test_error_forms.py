"""Each protocol has its own form of errors, for every error that the server knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import STATUSES, InvalidInputError, OverloadedError, Problem, error_response
from app.http.routes.clients.error_forms import error_form_of

PATHS = ("/hf/sst2", "/tei/sst2/predict", "/v2/models/sst2/infer", "/classify", "/invocations")


def answer(path: str, error: Exception) -> tuple[int, Any]:
    form = error_form_of(path)
    assert form is not None
    response = error_response(error, "id", form.write)
    body = json.loads(bytes(response.body))
    form.model.model_validate(body, strict=True)
    assert response.cause_status == STATUSES.get(type(error), (500, ""))[0]
    return response.status_code, body


@pytest.mark.parametrize("path", PATHS)
def test_every_error_fits_the_model_of_each_protocol(path: str) -> None:
    answered = {}
    for kind, (status, _) in STATUSES.items():
        error = kind.__new__(kind)
        Exception.__init__(error, "a reason")
        error.__dict__.update(
            retry_after_s=3, problems=[Problem(row=1, field="f", problem="p")], found=1, allowed=1
        )
        error.__dict__.update(suggestions=[], available=[], kind="task", name="t")
        answered[status], body = answer(path, error)
        assert "Traceback" not in json.dumps(body)
    changed = {status for status, other in answered.items() if status != other}
    assert changed == ({500, 504} if path.startswith("/tei") else set())


def test_unexpected_errors_disclose_nothing() -> None:
    for path in PATHS:
        status, body = answer(path, RuntimeError("the secret"))
        assert status in (500, 424)
        assert "secret" not in json.dumps(body)


def test_words_of_each_protocol() -> None:
    busy, wrong = (
        OverloadedError(1, 1, 7),
        InvalidInputError([Problem(row=0, field="x", problem="y")]),
    )
    assert answer("/tei/a/predict", busy)[1]["error_type"] == "overloaded"
    assert answer("/tei/a/predict", RuntimeError())[1]["error_type"] == "backend"
    assert answer("/invocations", busy)[1]["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert answer("/invocations", wrong)[1]["error_code"] == "INVALID_PARAMETER_VALUE"
    assert isinstance(answer("/v2/models/a/infer", busy)[1]["error"], str)
    assert "text classification" in answer("/hf/a", wrong)[1]["error"]
    assert "text classification" not in answer("/hf/a", busy)[1]["error"]
    assert answer("/classify", wrong)[1]["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_input",
        "param": "x",
        "code": 422,
    }


def test_headers_stay() -> None:
    form = error_form_of("/v2/models/a/infer")
    assert form is not None
    assert error_response(OverloadedError(1, 1, 7), "id", form.write).headers["retry-after"] == "7"


def test_our_own_paths_have_our_own_form() -> None:
    for path in ("/predict/sst2", "/tasks", "/", "", "/hfx", "/v22"):
        assert error_form_of(path) is None
