"""API keys over HTTP: who may ask for what, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.http import middleware
from app.keys import usage
from app.keys.key import digest_of
from app.process.settings import Settings

CheckError = Callable[..., dict[str, Any]]
Start = Callable[..., TestClient]
OPEN = (
    *("/", "/docs", "/openapi.json", "/health/live", "/health/ready"),
    *("/v2", "/v2/health/live", "/v2/health/ready"),
)
READING = ("/tasks", "/deltas", "/deltas/toy2/bitfit", "/benchmark", "/metrics")
ROWS = {"inputs": "a good film"}


def key(name: str, scopes: str, tasks: str, rest: str = "") -> str:
    """Return the line of a key; its secret is `secret_of(name)`."""
    scopes, tasks = (json.dumps(text.split()) for text in (scopes, tasks))
    digest = digest_of(secret_of(name).encode()).hex()
    return f'{name} = {{sha256 = "{digest}", scopes = {scopes}, tasks = {tasks}{rest}}}\n'


def secret_of(name: str) -> str:
    return f"dbk_0123456789-{name}-0123456789"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret_of(name)}"}


KEYS = (
    key("two", "predict", "toy2")
    + key("three", "predict", "toy3 toy68")
    + key("all", "predict", "*")
    + key("reader", "", "*")
    + key("admin", "admin", "*")
    + key("admin2", "admin", "toy2")
    + key("both", "predict admin", "*")
    + key("old", "predict", "*", ", expires = 2026-01-01")
)


@pytest.fixture(scope="module")
def keyed(make_app: Callable[..., Any]) -> Any:
    """A client of a server with keys, shared by tests that leave no trace."""
    with TestClient(make_app(keys=KEYS), raise_server_exceptions=False) as started:
        yield started


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("headers", [{}, bearer("two"), bearer("unknown"), bearer("old")])
def test_open_paths_need_no_key(keyed: TestClient, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "HEAD"):
        assert keyed.request(method, path, headers=headers).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_nothing_open_names_a_task(keyed: TestClient, path: str) -> None:
    text = keyed.get(path).text
    assert not [task for task in ("toy2", "toy3", "toy68", "toyreg", "toymulti") if task in text]


def test_the_index_lists_the_tasks_of_the_key(keyed: TestClient) -> None:
    assert keyed.get("/").json()["tasks"] == []
    assert keyed.get("/", headers=bearer("two")).json()["tasks"] == ["toy2"]
    assert keyed.get("/", headers=bearer("old")).json()["tasks"] == []
    assert len(keyed.get("/", headers=bearer("reader")).json()["tasks"]) == 5


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in READING),
        ("POST", "/predict"),
        ("POST", "/predict/toy2"),
        ("PUT", "/deltas/toy2/bitfit"),
        ("DELETE", "/deltas/toy2/bitfit"),
        ("POST", "/deltas/reload"),
        ("PUT", "/traffic/toy2/bitfit"),
        ("GET", "/no/such/path"),
        ("OPTIONS", "/predict/toy2"),
        ("DELETE", "/"),
        ("POST", "/health/live"),
    ],
)
def test_everything_else_needs_a_key(
    keyed: TestClient, check_error: CheckError, method: str, path: str
) -> None:
    for headers in ({}, bearer("unknown"), bearer("old")):
        response = keyed.request(method, path, headers=headers, json=ROWS)
        error = check_error(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == 'Bearer realm="deltabert"'
        assert "key" in error["message"]
    assert "expired on 2026-01-01" in error["message"]


def test_a_key_comes_in_either_header(keyed: TestClient) -> None:
    secret = secret_of("two")
    for headers in (
        {"Authorization": f"Bearer {secret}"},
        {"authorization": f"bearer   {secret} "},
        {"X-API-Key": secret},
        {"X-API-Key": secret, "Authorization": f"Bearer {secret}"},
        {"X-API-Key": secret, "Authorization": "Basic dXNlcjpwYXNz"},
    ):
        assert keyed.post("/predict/toy2", json=ROWS, headers=headers).status_code == 200, headers


def test_two_different_keys_are_refused(keyed: TestClient, check_error: CheckError) -> None:
    headers = bearer("two") | {"X-API-Key": secret_of("three")}
    error = check_error(keyed.get("/tasks", headers=headers), 401, "unauthorized")
    assert "several keys" in error["message"]


def test_neither_of_two_teams_sees_or_uses_the_tasks_of_the_other(
    keyed: TestClient, check_error: CheckError
) -> None:
    others = {"two": ["toy3", "toy68", "toyreg", "toymulti"], "three": ["toy2", "toyreg"]}
    names = {"two": ["toy2"], "three": ["toy3", "toy68"]}
    for team, tasks in names.items():
        headers = bearer(team)
        seen = [keyed.get(path, headers=headers).text for path in ("/tasks", "/deltas", "/")]
        seen.append(keyed.get("/benchmark", headers=headers).text)
        listed = keyed.get("/tasks", headers=headers).json()["tasks"]
        assert [task["task"] for task in listed] == tasks
        deltas = keyed.get("/deltas", headers=headers).json()["deltas"]
        assert {delta["task"] for delta in deltas} == set(tasks)
        for task in tasks:
            answer = keyed.get(f"/deltas/{task}/bitfit", headers=headers)
            assert answer.json()["manifest"]["task"]["name"] == task
        for task in others[team]:
            for method, path in (
                ("POST", f"/predict/{task}"),
                ("POST", f"/explain/{task}"),
                ("GET", f"/deltas/{task}/bitfit"),
                ("GET", f"/deltas/{task}/no-such-strategy"),
            ):
                response = keyed.request(method, path, headers=headers, json=ROWS)
                error = check_error(response, 403, "forbidden")
                assert task in error["message"]
                seen.append(response.text.replace(task, ""))
            body = {"inputs": "x", "targets": [{"task": tasks[0]}, {"task": task}]}
            response = keyed.post("/predict", headers=headers, json=body)
            check_error(response, 403, "forbidden")
            seen.append(response.text.replace(task, ""))
        check_error(keyed.get("/metrics", headers=headers), 403, "forbidden")
        assert not [task for task in others[team] for text in seen if task in text]


def test_an_unknown_task_is_refused_like_one_of_others(
    keyed: TestClient, check_error: CheckError
) -> None:
    """Otherwise the answers would tell which tasks others have."""
    messages = []
    for task in ("toy3", "tox3"):
        response = keyed.post(f"/predict/{task}", headers=bearer("two"), json=ROWS)
        messages.append(check_error(response, 403, "forbidden")["message"].replace(task, "?"))
    assert messages[0] == messages[1]


def test_near_matches_are_those_of_the_key(start: Start, check_error: CheckError) -> None:
    client = start(keys=key("some", "predict", "toy2 toy2x") + key("all", "predict", "*"))
    error = check_error(
        client.post("/predict/toy2x", headers=bearer("some"), json=ROWS), 404, "not_found"
    )
    assert error["details"] == {"suggestions": ["toy2"], "available": ["toy2"]}
    assert "toy3" not in error["message"]
    error = check_error(
        client.post("/predict/toy2x", headers=bearer("all"), json=ROWS), 404, "not_found"
    )
    assert "toy3" in error["details"]["available"]


def test_rights_without_a_key_end_on_their_day(start: Start) -> None:
    given = 'anonymous = {scopes = ["predict"], tasks = ["*"], expires = 2026-01-01}\n'
    client = start(keys=given)
    assert client.post("/predict/toy2", json=ROWS).status_code == 401
    assert client.get("/").json()["tasks"] == []


def test_requests_without_a_key_have_the_rights_that_they_are_given(
    start: Start, check_error: CheckError
) -> None:
    given = 'anonymous = {scopes = ["predict"], tasks = ["toy2"], rows_per_minute = 60}\n'
    client = start(keys=given + key("admin", "admin", "*"))
    assert client.post("/predict/toy2", json=ROWS).status_code == 200
    assert [task["task"] for task in client.get("/tasks").json()["tasks"]] == ["toy2"]
    for method, path in (
        ("POST", "/predict/toy3"),
        ("GET", "/metrics"),
        ("PUT", "/deltas/toy2/bitfit"),
        ("POST", "/deltas/reload"),
        ("GET", "/traffic/toy2/bitfit"),
    ):
        check_error(client.request(method, path, json=ROWS), 401, "unauthorized")
    answer = client.post("/predict/toy2", json=ROWS, headers={"X-API-Key": "dbk_wrong"})
    check_error(answer, 401, "unauthorized")
    body = {"inputs": ["x"] * 60}
    check_error(client.post("/predict/toy2", json=body), 429, "rate_limited")
    answer = client.put("/deltas/toy2/bitfit", headers=bearer("admin"))
    assert answer.status_code not in (401, 403)


@pytest.mark.parametrize("path", READING)
@pytest.mark.parametrize("name", ["reader", "all", "admin", "both"])
def test_any_key_for_all_tasks_reads_all(keyed: TestClient, path: str, name: str) -> None:
    assert keyed.get(path, headers=bearer(name)).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/predict/toy2"])
@pytest.mark.parametrize("name", ["reader", "admin", "admin2"])
def test_a_prediction_needs_its_scope(
    keyed: TestClient, check_error: CheckError, path: str, name: str
) -> None:
    error = check_error(keyed.post(path, headers=bearer(name), json=ROWS), 403, "forbidden")
    assert "lacks the scope 'predict'" in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/deltas/toy2/bitfit"),
        ("DELETE", "/deltas/toy2/bitfit"),
        ("POST", "/deltas/toy2/bitfit/rollback"),
        ("POST", "/deltas/reload"),
        ("PUT", "/traffic/toy2/bitfit"),
        ("GET", "/traffic/toy2/bitfit"),
        ("PATCH", "/predict/toy2"),
        ("DELETE", "/predict"),
        ("POST", "/"),
        ("POST", "/tasks"),
        ("LOAD", "/models"),
    ],
)
def test_a_prediction_key_is_never_an_admin_key(
    keyed: TestClient, check_error: CheckError, method: str, path: str
) -> None:
    for name in ("two", "three", "all", "reader"):
        response = keyed.request(method, path, headers=bearer(name), json={})
        error = check_error(response, 403, "forbidden")
        assert "lacks the scope 'admin'" in error["message"]


def test_an_admin_key_for_some_tasks_changes_nothing_else(
    keyed: TestClient, check_error: CheckError
) -> None:
    for method, path in (
        ("PUT", "/deltas/toy3/bitfit"),
        ("DELETE", "/traffic/toy3/bitfit"),
        ("POST", "/deltas/reload"),
        ("DELETE", "/deltas"),
    ):
        check_error(keyed.request(method, path, headers=bearer("admin2")), 403, "forbidden")


def test_a_refusal_comes_before_the_body_is_read(make_app: Callable[..., Any]) -> None:
    app = make_app(keys=KEYS)
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(path: str, headers: list[tuple[bytes, bytes]]) -> int:
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path}
        scope |= {"raw_path": path.encode(), "query_string": b"", "headers": headers}
        await app(scope, receive, send)
        return int(sent.pop(0)["status"])

    wrong = [(b"authorization", f"Bearer {secret_of('three')}".encode())]
    reader = [(b"x-api-key", secret_of("reader").encode())]
    with TestClient(app):
        assert asyncio.run(ask("/predict/toy2", [])) == 401
        sent.clear()
        assert asyncio.run(ask("/predict/toy2", wrong)) == 403
        sent.clear()
        assert asyncio.run(ask("/predict", reader)) == 403


def test_a_path_prefix_changes_no_right(start: Start) -> None:
    client = start(keys=KEYS, root_path="/base")
    for prefix in ("", "/base"):
        assert client.get(f"{prefix}/health/live").status_code == 200
        assert client.get(f"{prefix}/tasks").status_code == 401
        for task, status in (("toy2", 200), ("toy3", 403)):
            path = f"{prefix}/predict/{task}"
            assert client.post(path, headers=bearer("two"), json=ROWS).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "//predict/toy3",
        "/predict//toy3",
        "/predict/toy2/../toy3",
        "/predict/%74oy3",
        "/PREDICT/toy3",
        "/health/../predict/toy3",
        "/health/live/../../predict/toy3",
        "/docs/../predict/toy3",
    ],
)
def test_no_spelling_of_a_path_goes_around_the_check(keyed: TestClient, path: str) -> None:
    response = keyed.post(path, headers=bearer("two"), json=ROWS)
    assert response.status_code in (403, 404), response.text
    assert keyed.post(path, json=ROWS).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/base"])
def test_a_newline_at_the_end_of_a_path_goes_around_no_check(
    start: Start, check_error: CheckError, prefix: str
) -> None:
    """The routes' patterns match a path with a newline at its end like one without."""
    client = start(keys=KEYS, root_path=prefix)
    for name, method, path in (
        ("two", "GET", "/metrics%0A"),
        ("admin", "POST", "/predict%0A"),
        ("two", "POST", "/predict/toy3%0A"),
        ("two", "GET", "/deltas/toy3/bitfit%0A"),
    ):
        body = {"inputs": "x", "targets": [{"task": "toy2"}]}
        response = client.request(method, f"{prefix}{path}", headers=bearer(name), json=body)
        check_error(response, 403, "forbidden")


def test_rows_are_limited_and_the_wait_is_right(
    start: Start, check_error: CheckError, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(
        usage.Usage.__init__, "__kwdefaults__", {"clock": lambda: round(now[0] * 1e9)}
    )
    limited = ", rows_per_minute = 60, burst_s = 32"
    client = start(keys=key("slow", "predict", "*", limited) + key("all", "predict", "*"))

    def send(rows: int, targets: int = 1) -> Any:
        body = {"inputs": ["a film"] * rows, "targets": [{"task": "toy2"}] * targets}
        return client.post("/predict", headers=bearer("slow"), json=body)

    assert send(16, 2).status_code == 200
    for _ in range(3):  # refusals cost nothing
        response = send(2, 2)
        error = check_error(response, 429, "rate_limited")
        assert response.headers["retry-after"] == "4"
        assert error["message"] == ("the key 'slow' allows 60 rows a minute; try again in 4 s")
    now[0] += 3.99
    assert send(2, 2).status_code == 429
    now[0] += 0.01
    assert send(2, 2).status_code == 200
    too_large = check_error(send(33), 413, "too_large")
    assert too_large["details"] == {"found": 33, "allowed": 32}
    assert client.post("/predict/toy2", headers=bearer("all"), json=ROWS).status_code == 200
    text = client.get("/metrics", headers=bearer("all")).text
    assert 'deltabert_errors_total{code="rate_limited"} 4.0' in text
    assert 'deltabert_key_rows_total{key="slow"} 36.0' in text
    assert 'deltabert_key_rows_total{key="all"} 1.0' in text


def test_a_request_that_is_wrong_or_refused_elsewhere_costs_nothing(start: Start) -> None:
    client = start(keys=key("slow", "predict", "*", ", requests_per_minute = 1, burst_s = 60"))
    for path, body, status in (
        ("/predict/toy2", {"inputs": []}, 422),
        ("/predict/toy2", {"inputs": " "}, 422),
        ("/predict/toy2", {"rows": "x"}, 422),
        ("/predict/none", ROWS, 404),
        ("/predict/toy2", ROWS, 200),
        ("/predict/toy2", ROWS, 429),
    ):
        answer = client.post(path, headers=bearer("slow"), json=body)
        assert answer.status_code == status, (path, body, answer.text)


def test_a_share_of_the_queue_leaves_the_rest_to_others(
    gate: Any, start: Start, check_error: CheckError
) -> None:
    client = start(
        keys=key("part", "predict", "*", ", queue_share = 0.5") + key("all", "predict", "*"),
        max_queue_rows=20,
        max_rows_per_request=20,
    )

    def send(name: str, rows: int) -> Any:
        body = {"inputs": ["a film"] * rows}
        return client.post("/predict/toy2", headers=bearer(name), json=body)

    gate.close()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(send, "part", 8)]
        assert gate.entered.wait(5)
        response = send("part", 3)
        error = check_error(response, 429, "rate_limited")
        assert "8 rows without an answer, and may have 10" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
        waiting += [pool.submit(send, "all", 5)]
        gate.is_open.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert send("part", 10).status_code == 200
    check_error(send("part", 11), 413, "too_large")


def test_a_file_is_followed_under_traffic(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    kept, going, coming = (key(name, "predict", "*") for name in ("kept", "going", "coming"))
    path.write_text(kept + going, encoding="utf-8")
    path.chmod(0o600)
    client = start(keys_file=path)
    stop, statuses = threading.Event(), set()

    def send_until_stopped() -> None:
        while not stop.is_set():
            answer = client.post("/predict/toy2", headers=bearer("kept"), json=ROWS)
            statuses.add(answer.status_code)

    def status(name: str) -> int:
        return client.get("/tasks", headers=bearer(name)).status_code

    def becomes(name: str, wanted: int) -> bool:
        return any(status(name) == wanted or stop.wait(0.1) for _ in range(20))

    thread = threading.Thread(target=send_until_stopped)
    thread.start()
    try:
        assert (status("going"), status("coming")) == (200, 401)
        path.write_text(kept + coming, encoding="utf-8")
        assert becomes("going", 401), "a removed key is refused within two seconds"
        assert status("coming") == 200
        path.write_text("[broken", encoding="utf-8")
        stop.wait(1.5)
        assert (status("kept"), status("coming"), status("going")) == (200, 200, 401)
        path.write_text(kept + going, encoding="utf-8")
        assert becomes("going", 200), "the file is followed after a broken one, too"
    finally:
        stop.set()
        thread.join()
    assert statuses == {200}


def test_no_secret_and_no_digest_is_ever_logged_or_answered(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "keys.toml"
    path.write_text(key("file", "predict", "toy2"), encoding="utf-8")
    client = start(keys=KEYS, keys_file=path)
    names = ("two", "three", "file", "unknown", "old", "admin")
    secrets = [secret_of(name) for name in names]
    seen = []
    for name in names:
        for method, target in (
            ("POST", "/predict/toy2"),
            ("POST", "/predict/toy3"),
            ("GET", "/metrics"),
            ("PUT", "/deltas/toy2/bitfit"),
            ("GET", f"/{secret_of(name)}?key={secret_of(name)}"),
        ):
            for headers in (bearer(name), {"X-API-Key": secret_of(name)}):
                seen.append(client.request(method, target, headers=headers, json=ROWS).text)
    path.write_text(f'[file]\nsha256 = "{secret_of("file")}"', encoding="utf-8")
    client.app.state.keyring.reload()  # type: ignore[attr-defined]
    seen.append(repr(vars(client.app.state.keyring)))  # type: ignore[attr-defined]
    seen.append(repr(client.app.state.settings))  # type: ignore[attr-defined]
    # The client in this process logs addresses, too.
    logged = [each for each in caplog.records if not each.name.startswith("httpx")]
    seen += [logging.Formatter().format(record) for record in logged]
    secrets += [digest_of(secret.encode()).hex() for secret in secrets]
    assert "the previous file of keys stays in use" in caplog.text, "the log was not recorded"
    assert "key=two" in caplog.text
    assert not [secret for secret in secrets for text in seen if secret in text]


def test_the_line_of_a_refusal_names_the_key(
    keyed: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert keyed.post("/predict/toy3", headers=bearer("two"), json=ROWS).status_code == 403
    assert "POST /predict/{task} 403" in caplog.text
    assert "key=two" in caplog.text


def test_a_file_that_cannot_be_used_is_a_metric(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(key("all", "", "*"), encoding="utf-8")
    client = start(keys_file=path)
    for text, stale in ((key("all", "", "*"), 0.0), ("[broken", 1.0), (key("all", "", "*"), 0.0)):
        path.write_text(text, encoding="utf-8")
        client.app.state.keyring.reload()  # type: ignore[attr-defined]
        metrics = client.get("/metrics", headers=bearer("all")).text
        assert f'deltabert_stale_files{{file="keys"}} {stale}' in metrics
    assert 'deltabert_stale_files{file="certificate"} 0.0' in metrics


def test_settings_never_show_keys() -> None:
    settings = Settings(keys=KEYS)
    digest = digest_of(secret_of("two").encode()).hex()
    assert digest in KEYS
    for shown in (repr(settings), str(settings), json.dumps(settings.model_dump(mode="json"))):
        assert digest not in shown


def test_browsers_may_send_a_key(start: Start) -> None:
    client = start(keys=KEYS, cors_origins="https://page.example")
    origin = {"Origin": "https://page.example"}
    asked = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-api-key",
    }
    answer = client.options("/predict/toy2", headers=asked)
    assert answer.status_code == 200
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert "authorization" in allowed
    assert "x-api-key" in allowed
    refused = client.post("/predict/toy2", headers=origin, json=ROWS)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"


def test_the_document_says_what_needs_a_key(keyed: TestClient, client: TestClient) -> None:
    document = keyed.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in OPEN), path
            assert ("401" in operation["responses"]) == (path not in OPEN), path
    page = html.unescape(keyed.get("/docs").text)
    assert '/predict/{task}\' -H "Authorization: Bearer $KEY"' in page
    assert '-d \'{"inputs": "A text.", "targets": [{"task": "TASK"}]}\'' in page
    without = client.get("/openapi.json").json()
    assert "securitySchemes" not in without["components"]
    assert "Authorization" not in client.get("/docs").text


def test_a_key_works_until_its_day(start: Start) -> None:
    today = datetime.now(UTC).date()
    client = start(
        keys=key("today", "predict", "*", f", expires = {today}")
        + key("later", "predict", "*", f", expires = {today + timedelta(days=1)}")
    )
    assert client.get("/tasks", headers=bearer("today")).status_code == 401
    assert client.get("/tasks", headers=bearer("later")).status_code == 200


def test_requests_without_a_key_are_logged_in_summary(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone can send them, so a line for each would fill the disk."""
    monkeypatch.setattr(middleware, "_LOG_EVERY_S", 600.0)  # 50 requests may take more than 10 s
    client = start(keys=KEYS)
    caplog.set_level(logging.INFO)
    for number in range(50):
        headers = {"Authorization": f"Bearer {'x' * number}"}
        assert client.post("/predict/toy2", json=ROWS, headers=headers).status_code == 401
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("app")]
    assert [line for line in lines if "401" in line or "refused" in line] == [
        "refused 1 since the last such line: POST /predict/{task} unauthorized"
    ]
