"""Input that is wrong, large or strange: a right answer or a clear 4xx, always in one shape."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

CheckError = Callable[..., dict[str, Any]]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        ("\x00good\x00film\x00", False),
        ("🙂👩‍👩‍👧 Ünïcödé 中文 ﷽", False),
        ("\u202e\ufeff\u0301", False),
        ("x" * 100_000, False),  # one word, too long to be in any vocabulary
        ("good film " * 10_000, True),
    ],
)
def test_strange_text_is_answered(client: TestClient, text: str, truncated: bool) -> None:
    response = client.post("/predict/toy2", json={"inputs": text})
    assert response.status_code == 200, response.text
    assert response.json()["predictions"][0]["truncated"] is truncated


def test_a_thousand_rows_are_answered(client: TestClient) -> None:
    rows = [f"film {number}" for number in range(1000)]
    response = client.post("/predict/toy2", json={"inputs": rows})
    assert response.status_code == 200, response.text
    assert len(response.json()["predictions"]) == 1000


BODIES: list[tuple[Any, str | None, str]] = [
    ({}, "inputs", "is missing"),
    ({"inputs": []}, "inputs", "empty list"),
    ({"inputs": "x", "strateg": "head"}, "strateg", "Did you mean 'strategy'"),
    ({"inputs": "x", "qqqq": 1}, "qqqq", "Allowed: inputs, strategy, version, top_k"),
    ({"inputs": "x", "top_k": 0}, "top_k", "must be greater than or equal to 1"),
    ({"inputs": "x", "top_k": -3}, "top_k", "must be greater than or equal to 1"),
    ({"inputs": "x", "top_k": "1"}, "top_k", "integer"),
    ({"inputs": "x", "top_k": 1.5}, "top_k", "integer"),
    ({"inputs": "x", "top_k": True}, "top_k", "integer"),
    ({"inputs": "x", "strategy": 5}, "strategy", "string"),
    ({"inputs": "x", "strategy": ""}, "strategy", "at least 1 character"),
    ({"inputs": "x", "strategy": "s" * 1000}, "strategy", "at most 256"),
    ({"inputs": "x", "version": ["v"]}, "version", "string"),
    ([], None, "valid dictionary"),
    ([1], None, "must be a JSON object"),
    ("text", None, "valid dictionary"),
    (7, None, "valid dictionary"),
]


@pytest.mark.parametrize(("body", "field", "problem"), BODIES)
def test_a_wrong_body_names_its_field(
    client: TestClient, check_error: CheckError, body: Any, field: str | None, problem: str
) -> None:
    error = check_error(client.post("/predict/toy2", json=body), 422, "invalid_input")
    (detail,) = error["details"]
    assert (detail["row"], detail["field"]) == (None, field)
    assert problem in detail["problem"]


PAIR = {"premise": "a", "hypothesis": "b"}
ROWS: list[tuple[str, Any, int, str | None, str]] = [
    ("toy2", None, 0, None, "must be a string or an object"),
    ("toy2", 3, 0, None, "not a number"),
    ("toy2", ["ok", True], 1, None, "not a boolean"),
    ("toy2", [["nested"]], 0, None, "not an array"),
    ("toy2", {}, 0, "sentence", "is missing"),
    ("toy2", {"sentense": "x"}, 0, "sentense", "Did you mean 'sentence'"),
    ("toy2", {"sentence": 5}, 0, "sentence", "must be a string, not a number"),
    ("toy2", {"sentence": None}, 0, "sentence", "must be a string"),
    ("toy2", {"sentence": "x", "extra": "y"}, 0, "extra", "takes 'sentence'"),
    ("toy2", ["ok", ""], 1, None, "has no text; leave the row out"),
    ("toy2", " \t\u200b", 0, None, "has no text"),
    ("toy3", PAIR | {"hypothesis": ""}, 0, "hypothesis", "has no text"),
    ("toy3", "one text", 0, None, "takes two texts"),
    ("toy3", [PAIR, {"premise": "a"}], 1, "hypothesis", "is missing"),
    ("toy3", [PAIR, PAIR | {"x": "y"}], 1, "x", "'premise' and 'hypothesis'"),
    ("toy3", {"text": "a"}, 0, "text", "is not a field"),
]


@pytest.mark.parametrize(("task", "inputs", "row", "field", "problem"), ROWS)
def test_a_wrong_row_is_named(
    client: TestClient,
    check_error: CheckError,
    task: str,
    inputs: Any,
    row: int,
    field: str | None,
    problem: str,
) -> None:
    error = check_error(
        client.post(f"/predict/{task}", json={"inputs": inputs}), 422, "invalid_input"
    )
    (detail,) = error["details"]
    assert (detail["row"], detail["field"]) == (row, field)
    assert problem in detail["problem"]


def test_all_wrong_rows_are_named_up_to_a_hundred(
    client: TestClient, check_error: CheckError
) -> None:
    response = client.post("/predict/toy2", json={"inputs": ["ok", 1, "ok", 2]})
    error = check_error(response, 422, "invalid_input")
    assert [detail["row"] for detail in error["details"]] == [1, 3]
    assert "(and 1 more)" in error["message"]
    response = client.post("/predict/toy2", json={"inputs": [1] * 1000})
    assert len(check_error(response, 422, "invalid_input")["details"]) == 100


@pytest.mark.parametrize(
    "body",
    [
        rb'{"inputs": "\ud800"}',
        rb'{"inputs": {"sentence": "good \udfff"}}',
        rb'{"inputs": {"\ud800": "x"}}',
        rb'{"inputs": "x", "\ud800": 1}',
        rb'{"inputs": "x", "strategy": "\ud800"}',
        b'{"inputs": NaN}',
        b'{"inputs": ["ok", Infinity]}',
        b'{"inputs": "x", "top_k": NaN}',
        b'{"inputs": "x", "top_k": 1e999}',
        b'{"inputs": "x", "top_k": ' + b"9" * 4000 + b".5}",
        b'{"inputs": ' + b"9" * 4000 + b"}",
    ],
)
def test_json_that_the_schema_does_not_allow_is_refused(
    client: TestClient, check_error: CheckError, body: bytes
) -> None:
    response = client.post("/predict/toy2", content=body, headers=JSON)
    check_error(response, 422, "invalid_input")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b'{"inputs": }',
        b"not json",
        b'{"inputs": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"inputs": "x", "top_k": ' + b"9" * 5000 + b"}",
    ],
)
def test_malformed_json(client: TestClient, check_error: CheckError, body: bytes) -> None:
    response = client.post("/predict/toy2", content=body, headers=JSON)
    if body:
        check_error(response, 400, "malformed_json")
    else:
        check_error(response, 422, "invalid_input")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "text/plain"}, "text/plain"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type: application/json"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "multipart/form-data"),
        ({"Content-Type": ""}, "Content-Type is missing;"),
        ({"Content-Type": "text/x+json"}, "text/x+json"),
        (JSON | {"Content-Encoding": "gzip"}, "gzip"),
        (JSON | {"Transfer-Encoding": "gzip, chunked"}, "Transfer-Encoding"),
    ],
)
def test_a_body_that_is_not_plain_json(
    client: TestClient, check_error: CheckError, headers: dict[str, str], said: str
) -> None:
    body = gzip.compress(json.dumps({"inputs": "good"}).encode())
    response = client.post("/predict/toy2", content=body, headers=headers)
    assert said in check_error(response, 415, "unsupported_body")["message"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"],
)
def test_spellings_of_json_are_taken(client: TestClient, content_type: str) -> None:
    body = json.dumps({"inputs": "good"})
    response = client.post("/predict/toy2", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"inputs": "x", "version": "\\ud800"}', "half of a surrogate pair"),
        (b"null", "must be a JSON object"),
    ],
)
def test_bodies_that_no_client_writes_by_itself(
    client: TestClient, check_error: CheckError, body: bytes, says: str
) -> None:
    response = client.post("/predict/toy2", content=body, headers=JSON)
    assert says in check_error(response, 422, "invalid_input")["message"]


def test_too_many_targets_are_one_error(client: TestClient, check_error: CheckError) -> None:
    response = client.post("/predict", json={"inputs": "x", "targets": [{}] * 1000})
    error = check_error(response, 422, "invalid_input")
    assert error["message"] == "field 'targets' are 1000; at most 256"


def test_too_many_rows(start: Callable[..., TestClient], check_error: CheckError) -> None:
    client = start(max_rows_per_request=6)
    assert client.post("/predict/toy2", json={"inputs": ["x"] * 6}).status_code == 200
    response = client.post("/predict/toy2", json={"inputs": ["x"] * 7})
    error = check_error(response, 413, "too_large")
    assert error["details"] == {"found": 7, "allowed": 6}
    assert "DELTABERT_MAX_ROWS_PER_REQUEST" in error["message"]
    targets = [{"task": "toy2"}] * 4
    response = client.post("/predict", json={"inputs": ["x", "y"], "targets": targets})
    assert check_error(response, 413, "too_large")["details"] == {"found": 8, "allowed": 6}


def test_too_long_a_text(start: Callable[..., TestClient], check_error: CheckError) -> None:
    client = start(max_text_chars=50)
    assert client.post("/predict/toy2", json={"inputs": "x" * 50}).status_code == 200
    response = client.post("/predict/toy2", json={"inputs": ["ok", "x" * 51]})
    error = check_error(response, 413, "too_large")
    assert "row 1, field 'sentence'" in error["message"]
    assert error["details"] == {"found": 51, "allowed": 50}


def test_too_large_a_body_that_says_so_is_not_read(
    start: Callable[..., TestClient], check_error: CheckError
) -> None:
    client = start(max_body_bytes=2000)
    response = client.post("/predict/toy2", json={"inputs": "x" * 3000})
    error = check_error(response, 413, "too_large")
    assert error["details"]["allowed"] == 2000
    assert error["details"]["found"] > 3000
    assert client.post("/predict/toy2", json={"inputs": "x" * 1900}).status_code == 200


def test_too_large_a_body_that_comes_in_pieces(
    start: Callable[..., TestClient], check_error: CheckError
) -> None:
    client = start(max_body_bytes=2000)

    def pieces() -> Iterator[bytes]:
        yield b'{"inputs": "'
        for _ in range(50):
            yield b"x" * 100

    response = client.post("/predict/toy2", content=pieces(), headers=JSON)
    error = check_error(response, 413, "too_large")
    assert error["details"] == {"found": None, "allowed": 2000}


@pytest.mark.parametrize(
    "task",
    ["../etc/passwd", "%2e%2e%2fzoo", "toy2%00", "Toy2", "t\u043ey2", "toy2 ", "a" * 200, "*"],
)
def test_task_names_are_only_ever_looked_up(
    client: TestClient, check_error: CheckError, task: str
) -> None:
    response = client.post(f"/predict/{task}", json={"inputs": "x"})
    assert response.status_code == 404, response.text
    check_error(response, 404, response.json()["error"]["code"])


@pytest.mark.parametrize(
    ("path", "body", "suggestion"),
    [
        ("/predict/toy22", {"inputs": "x"}, "toy2"),
        ("/predict/TOYREG", {"inputs": "x"}, "toyreg"),
        ("/predict/toy2", {"inputs": "x", "strategy": "bitfitt"}, "bitfit"),
        ("/predict", {"inputs": "x", "targets": [{"task": "toymult"}]}, "toymulti"),
    ],
)
def test_an_unknown_name_gets_near_matches_and_never_an_answer(
    client: TestClient, check_error: CheckError, path: str, body: Any, suggestion: str
) -> None:
    error = check_error(client.post(path, json=body), 404, "not_found")
    assert suggestion in error["details"]["suggestions"]
    assert suggestion in error["details"]["available"]
    assert suggestion in error["message"]


def test_an_unknown_version(client: TestClient, check_error: CheckError) -> None:
    response = client.post("/predict/toy2", json={"inputs": "x", "version": "0" * 16})
    error = check_error(response, 404, "not_found")
    assert len(error["details"]["available"]) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": "x"}, "targets"),
        ({"inputs": "x", "targets": []}, "targets"),
        ({"inputs": "x", "targets": [{"task": "toy2"}] * 257}, "targets"),
        ({"inputs": "x", "targets": "toy2"}, "targets"),
        ({"inputs": "x", "targets": {"task": "toy2"}}, "targets"),
        ({"inputs": "x", "targets": ["toy2"]}, "targets.0"),
        ({"inputs": "x", "targets": [{"task": "toy2"}, {}]}, "targets.1.task"),
        ({"inputs": "x", "targets": [{"task": "toy2", "strat": "head"}]}, "targets.0.strat"),
    ],
)
def test_wrong_targets(client: TestClient, check_error: CheckError, body: Any, field: str) -> None:
    error = check_error(client.post("/predict", json=body), 422, "invalid_input")
    assert [detail["field"] for detail in error["details"]] == [field]


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        (["toy2", {"task": "toy3"}], 'field \'targets.0\' must be an object like {"task": "toy2"}'),
        ("toy2", 'must be a list like [{"task": "toy2"}]'),
        ({"task": "toy2"}, 'must be a list like [{"task": "sst2"}]'),
        (["\ud800"], "must be an object like"),
    ],
)
def test_the_form_of_a_target_is_shown(
    client: TestClient, check_error: CheckError, targets: Any, shown: str
) -> None:
    body = json.dumps({"inputs": "x", "targets": targets}).encode()
    response = client.post("/predict", content=body, headers=JSON)
    error = check_error(response, 422, "invalid_input")
    assert shown in error["message"]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"inputs": "caf\xe9"}', "not UTF-8 there (byte 0xe9); encode it as UTF-8"),
        (b"\xff\xfe{", "not UTF-16"),
    ],
)
def test_a_body_in_another_encoding_is_named(
    client: TestClient, check_error: CheckError, body: bytes, shown: str
) -> None:
    response = client.post("/predict/toy2", content=body, headers=JSON)
    error = check_error(response, 400, "malformed_json")
    assert shown in error["message"]


def test_a_row_that_does_not_fit_one_of_the_targets(
    client: TestClient, check_error: CheckError
) -> None:
    body = {"inputs": ["x"], "targets": [{"task": "toy2"}, {"task": "toy3"}]}
    error = check_error(client.post("/predict", json=body), 422, "invalid_input")
    assert "'toy3' takes two texts" in error["message"]


def test_one_bad_request_does_not_disturb_the_next(client: TestClient) -> None:
    good = client.post("/predict/toy2", json={"inputs": "good"}).json()
    for body, *_ in BODIES:
        client.post("/predict/toy2", json=body)
    assert client.post("/predict/toy2", json={"inputs": "good"}).json() == good
