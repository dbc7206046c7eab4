"""Requests that schemathesis makes of the OpenAPI document: answers are as the document says.

Valid and invalid paths, headers and bodies of every route. An answer has a documented status, the
documented content type and a body of the documented form; no error of the server is among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from app.http.routes.clients.error_forms import error_form_of

schemathesis = pytest.importorskip("schemathesis", reason="needs the extra dev, installed again")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
not_a_server_error = pytest.importorskip("schemathesis.checks").not_a_server_error
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
# Which rows are valid depends on the task, and a deadline of 1 ms ends in a documented 504.
EXCLUDED = [checks.positive_data_acceptance, not_a_server_error]
OPERATIONS = 30
EXAMPLES = 25


@pytest.fixture(scope="module")
def app_client(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    """A client of an app over the tiny backbone; its errors are answers, as in a real server."""
    with TestClient(make_app(), raise_server_exceptions=False) as client:
        yield client


def operations(client: TestClient) -> list[Any]:
    """Every operation of the document."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    return [result.ok() for result in schema.get_all_operations()]


def modes() -> list[Any]:
    """Valid requests, then invalid ones."""
    return [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of schemathesis, about examples
def test_every_answer_is_as_documented(app_client: TestClient) -> None:
    found = operations(app_client)
    assert len(found) == OPERATIONS
    statuses: Counter[tuple[str, int]] = Counter()
    for operation in found:
        # Nothing of a request without a body can be invalid: paths are any text.
        for mode in modes() if operation.method == "post" else modes()[:1]:
            _send_all(app_client, operation, mode, statuses)
    assert {path for path, status in statuses if status == 200} >= {"/tasks", "/deltas"}
    assert {status for _, status in statuses} >= {200, 404, 422}


def _send_all(client: TestClient, operation: Any, mode: Any, statuses: Counter[Any]) -> None:
    """Send valid or invalid requests of one operation and check the answers."""

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        sent = case.as_transport_kwargs(base_url="http://testserver")
        response = client.request(**{k: v for k, v in sent.items() if k != "cookies"})
        statuses[operation.path, response.status_code] += 1
        assert response.status_code != 500, case.as_curl_command()
        case.validate_response(response, excluded_checks=EXCLUDED)

    send()


# Without a key for changes they are off, and not in the document.
# A strategy may contain slashes, so the routes below a delta's are such changes, too.
CHANGES = {
    (method, f"/deltas/{{task}}/{{strategy}}{rest}")
    for method in ("PUT", "DELETE")
    for rest in ("", "/norms", "/predictions")
}


def test_every_method_of_every_route_has_the_one_form_of_errors(app_client: TestClient) -> None:
    """Methods that the document doesn't have are 405 with `Allow`, and never an unknown form."""
    for operation in operations(app_client):
        path = operation.path.replace("{task}", "toy2").replace("{strategy}", "bitfit")
        for method in METHODS:
            answer = app_client.request(method, path)
            if method == operation.method.upper() or (method, operation.method) == ("HEAD", "get"):
                continue
            if (method, operation.path) in CHANGES:
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
                continue
            assert answer.status_code == 405, (method, path)
            assert operation.method.upper() in answer.headers["allow"]
            if method == "HEAD":  # its answers have no body
                continue
            form = error_form_of(path)
            if form is not None:  # the protocol of other clients has its own
                assert form.model.model_validate(answer.json(), strict=True)
                continue
            assert set(answer.json()["error"]) == {"code", "message", "details", "request_id"}
