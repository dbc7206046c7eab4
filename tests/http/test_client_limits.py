"""Keys, limits, load shedding, deadlines and metrics hold for the clients of every protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.http.routes.clients.error_forms import error_form_of
from tests.http.test_keys import bearer, key

TENSORS = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a film"]}]}
CALLS = {
    "/hf/toy2": {"inputs": "a film"},
    "/tei/toy2/predict": {"inputs": "a film"},
    "/v2/models/toy2/infer": TENSORS,
    "/classify": {"model": "toy2", "input": "a film"},
    "/invocations?task=toy2": {"inputs": "a film"},
}
calls = pytest.mark.parametrize("path", CALLS, ids=lambda path: path.split("/")[1].split("?")[0])
KEYS = key("two", "predict", "toy2", ", rows_per_minute = 6, burst_s = 10") + key(
    "other", "predict", "toy3"
)


def check_form(answer: Any, path: str, status: int) -> None:
    """Check that an error has the status and the form of its protocol."""
    form = error_form_of(path.partition("?")[0])
    assert form is not None
    if path.startswith("/tei"):
        status = {504: 424, 500: 424}.get(status, status)
    assert answer.status_code == status, answer.text
    assert form.model.model_validate(answer.json(), strict=True)
    assert answer.headers["x-request-id"]


@calls
def test_keys_hold(make_app: Callable[..., Any], path: str) -> None:
    with TestClient(make_app(keys=KEYS), raise_server_exceptions=False) as client:
        check_form(client.post(path, json=CALLS[path]), path, 401)
        check_form(client.post(path, json=CALLS[path], headers=bearer("other")), path, 403)
        assert client.post(path, json=CALLS[path], headers=bearer("two")).status_code == 200
        busy = client.post(path, json=CALLS[path], headers=bearer("two"))
        check_form(busy, path, 429)
        assert int(busy.headers["retry-after"]) > 0


@calls
@pytest.mark.parametrize("task", ["toyreg", "nosuch"])
def test_a_key_learns_nothing_of_other_tasks(
    make_app: Callable[..., Any], path: str, task: str
) -> None:
    """Bodies that do not fit get the same answer, whether there is the other task or not."""
    body = json.loads(json.dumps(CALLS[path]).replace("toy2", task).replace('"a film"', '[["a"]]'))
    path = path.replace("toy2", task)
    with TestClient(make_app(keys=KEYS), raise_server_exceptions=False) as client:
        answer = client.post(path, json=body, headers=bearer("two"))
    check_form(answer, path, 403)
    assert f"the key 'two' may not use the task '{task}'" in answer.text


@calls
def test_bodies_have_limits(start: Callable[..., TestClient], path: str) -> None:
    client = start(max_body_bytes=1024)
    body = json.dumps(CALLS[path]).replace("a film", "a film" * 200)
    headers = {"content-type": "application/json"}
    check_form(client.post(path, content=body, headers=headers), path, 413)
    check_form(client.post(path, content=b"{", headers=headers), path, 400)
    check_form(client.post(path, content=b"\xff", headers=headers), path, 400)
    compressed = headers | {"content-encoding": "gzip"}
    check_form(client.post(path, content=b"{}", headers=compressed), path, 415)
    check_form(client.put(path, json={}), path, 405)
    path_alone = path.partition("?")[0]
    check_form(client.post(f"{path_alone}/no/such/path", json=CALLS[path]), path, 404)


@calls
def test_deadlines_hold(start: Callable[..., TestClient], gate: Any, path: str) -> None:
    client = start()
    gate.close()
    headers = {"X-Request-Timeout-Ms": "60"}
    check_form(client.post(path, json=CALLS[path], headers=headers), path, 504)
    wrong = client.post(path, json=CALLS[path], headers={"X-Request-Timeout-Ms": "+1"})
    check_form(wrong, path, 422)


@calls
def test_a_full_queue_refuses(start: Callable[..., TestClient], gate: Any, path: str) -> None:
    client = start(max_queue_rows=1, max_rows_per_request=1, workers=1, max_batch_rows=1)
    gate.close()
    with ThreadPoolExecutor(8) as threads:
        sent = [threads.submit(client.post, path, json=CALLS[path]) for _ in range(8)]
        # One row is in the engine and one waits, so at least six are refused.
        refused, _ = next(iter(as_completed(sent, 30))), gate.is_open.set()
        check_form(refused.result(), path, 429)
        assert int(refused.result().headers["retry-after"]) > 0
        assert 200 in [each.result().status_code for each in sent]


@calls
def test_rows_and_routes_are_counted(start: Callable[..., TestClient], path: str) -> None:
    client = start()
    assert client.post(path, json=CALLS[path]).status_code == 200
    text = client.get("/metrics").text
    assert 'deltabert_rows_total{strategy="bitfit",task="toy2"} 1.0' in text
    route = path.partition("?")[0].replace("toy2", "{model}" if "/v2" in path else "{task}")
    assert f'route="{route}"' in text


def test_an_index_of_models_shows_a_keys_tasks_alone(make_app: Callable[..., Any]) -> None:
    with TestClient(make_app(keys=KEYS), raise_server_exceptions=False) as client:
        assert client.post("/v2/repository/index").status_code == 401
        index = client.post("/v2/repository/index", headers=bearer("other")).json()
        assert {each["name"].partition(":")[0] for each in index} == {"toy3"}
        assert client.get("/v2/models/toy2", headers=bearer("other")).status_code == 403
        assert client.get("/tei/toy2/info", headers=bearer("other")).status_code == 403
        for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
