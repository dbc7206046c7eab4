"""Streams of rows: NDJSON and CSV in and out, in order, with bad rows in their places."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.http.routes import bulk
from app.keys.key import digest_of
from app.pipeline.bulk.rows import MAX_ROW_BYTES

NDJSON, CSV = "application/x-ndjson", "text/csv"
NAMES = ["text", *(f"c{number}" for number in range(bulk.MAX_KEPT))]
WIDE = ",".join(NAMES).encode() + b"\nx\n"
WIDE_JSON = json.dumps(dict.fromkeys(NAMES, "x")).encode() + b"\n"


def stream(
    client: TestClient,
    body: bytes,
    given: str = NDJSON,
    path: str = "/predict/toy2",
    **headers: str,
) -> Any:
    return client.post(path, content=body, headers={"Content-Type": given, **headers})


def lines_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(NDJSON)
    return [json.loads(line) for line in response.text.splitlines()]


def table_of(response: Any) -> list[dict[str, str]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(CSV)
    return list(csv.DictReader(response.text.splitlines()))


def test_lines_are_answered_in_order_as_json_answers_them(client: TestClient) -> None:
    texts = [f"a {word} film" for word in ("good", "bad", "very good", "not bad")] * 50
    body = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    rows = lines_of(stream(client, body.encode()))
    known = client.post("/predict/toy2", json={"inputs": texts}).json()
    assert [row["row"] for row in rows] == [row["id"] for row in rows] == list(range(len(texts)))
    assert [row["label"] for row in rows] == [one["label"] for one in known["predictions"]]
    wanted = [pytest.approx(one["score"], abs=2e-5) for one in known["predictions"]]
    assert [row["score"] for row in rows] == wanted


def test_the_answer_names_the_delta_and_gives_scores_if_asked(client: TestClient) -> None:
    response = stream(client, b'"good"\n', path="/predict/toy2?strategy=layernorm&top_k=1")
    (row,) = lines_of(response)
    assert list(row["scores"]) == [row["label"]]
    assert response.headers[bulk.DELTA_HEADER].startswith("toy2/layernorm@")


BAD = [
    (b"{bad", "malformed_json"),
    (b"[1]", "invalid_input"),
    (b'{"title": "x"}', "invalid_input"),
    (b'{"text": 1}', "invalid_input"),
    (b'" "', "invalid_input"),
    (b'"\xff"', "invalid_input"),
    (b'"\\ud800"', "invalid_input"),
    (b'"' + b"a" * MAX_ROW_BYTES + b'"', "too_large"),
    (b'"' + b"a" * 300_000 + b'"', "too_large"),
    (b"[" * 100_000, "malformed_json"),
]


def test_bad_lines_are_answered_in_their_places(client: TestClient) -> None:
    body = b"".join(
        b'{"id": %d, "text": "good"}\n%s\n' % (n, bad) for n, (bad, _) in enumerate(BAD)
    )
    rows = lines_of(stream(client, body))
    assert [row["row"] for row in rows] == list(range(2 * len(BAD)))
    assert all(row["label"] in ("good", "bad") for row in rows[::2])
    assert [row["error"]["code"] for row in rows[1::2]] == [code for _, code in BAD]
    assert all(set(row) == {"row", "error"} for row in rows[1::2])


def test_csv_has_quoted_lines_a_mark_of_bytes_and_windows_ends(client: TestClient) -> None:
    body = b'\xef\xbb\xbfid,lang,sentence\r\n1,en,"a good\r\n""film"""\r\n2,en\r\n\r\n3,en,bad'
    rows = table_of(stream(client, body, CSV))
    assert list(rows[0]) == ["id", "label", "decision", "score", "truncated", "error"]
    assert [row["id"] for row in rows] == ["1", "", "3"]
    assert [bool(row["label"]) for row in rows] == [True, False, True]
    assert "has 2 fields, but the header has 3" in rows[1]["error"]
    text = {"inputs": 'a good\r\n"film"'}
    known = client.post("/predict/toy2", json=text).json()["predictions"][0]
    assert float(rows[0]["score"]) == pytest.approx(known["score"], abs=2e-5)


def test_accept_chooses_the_type_of_the_answer(client: TestClient) -> None:
    rows = lines_of(stream(client, b"text\ngood\n", CSV, Accept=NDJSON))
    assert rows[0]["label"] in ("good", "bad")
    assert len(table_of(stream(client, b'"good"\n', Accept=CSV))) == 1


def test_kept_columns_and_columns_of_texts_are_named_in_the_query(client: TestClient) -> None:
    path = "/predict/toy3?text_columns=a,b&keep=label,lang"
    (row,) = table_of(stream(client, b"label,a,b,lang\nyes,the,film,en\n", CSV, path))
    names = ["label", "lang", "toy3.label", "toy3.decision", "toy3.score", "toy3.truncated"]
    assert list(row) == [*names, "error"]
    assert (row["label"], row["lang"]) == ("yes", "en")


@pytest.mark.parametrize(
    ("path", "body", "given", "status", "says"),
    [
        (
            "/predict/toy2",
            b"id,txt\n1,x\n",
            CSV,
            422,
            "has no column 'sentence'; it has 'id', 'txt'",
        ),
        ("/predict/toy2?keep=lang", b"text\nx\n", CSV, 422, "has no column 'lang'"),
        ("/predict/toy2?keep=row", b"text,row\nx,1\n", CSV, 422, "'row', which can't be kept"),
        ("/predict/toy2?text_columns=a,b", b"a,b\nx,y\n", CSV, 422, "which takes 'sentence'"),
        ("/predict/toy2", b"text,text\nx,y\n", CSV, 422, "'text' more than once"),
        ("/predict/toy2", b"", CSV, 422, "has no header"),
        ("/predict/toy2?keep=*", WIDE, CSV, 422, "has 1,025 columns to keep; at most 1,024"),
        ("/predict/toy2?keep=*", WIDE_JSON, NDJSON, 422, "1,025 columns to keep"),
        ("/predict/toy2?stratgy=head", b'"x"', NDJSON, 422, "Did you mean 'strategy'?"),
        ("/predict/toy2?top_k=1&top_k=2", b'"x"', NDJSON, 422, "more than once"),
        ("/predict/toy2?top_k=0", b'"x"', NDJSON, 422, "top_k"),
        ("/predict/toy2?strategy=no", b'"x"', NDJSON, 404, "unknown strategy"),
        (f"/predict/{'a' * 300}", b'"x"', NDJSON, 422, "at most 256 characters"),
        ("/predict/no", b'"x"', NDJSON, 404, "unknown task"),
        ("/predict", b'"x"', NDJSON, 415, "POST /predict takes JSON alone"),
    ],
)
def test_what_no_row_can_mend_is_refused_before_the_first_one(
    client: TestClient,
    check_error: Callable[..., dict[str, Any]],
    path: str,
    body: bytes,
    given: str,
    status: int,
    says: str,
) -> None:
    codes = {404: "not_found", 415: "unsupported_body", 422: "invalid_input"}
    error = check_error(stream(client, body, given, path), status, codes[status])
    assert says in error["message"]


def test_an_empty_stream_of_lines_has_an_empty_answer(client: TestClient) -> None:
    assert lines_of(stream(client, b"\n \n")) == []


def test_a_stream_that_takes_too_long_ends_with_an_error(make_app: Callable[..., Any]) -> None:
    """The client sends a row and then nothing more."""
    with TestClient(make_app(stream_timeout_s=2)) as client:
        assert client.portal is not None
        status, body = client.portal.call(_drip, client.app, [b'"good"\n'], NDJSON, 0)
    rows = [json.loads(line) for line in body.splitlines()]
    assert (status, [row["row"] for row in rows]) == (200, [0, None])
    assert rows[-1]["error"]["code"] == "deadline_exceeded"
    assert "not answered within 2 s" in rows[-1]["error"]["message"]


def test_the_time_of_a_stream_covers_its_header(make_app: Callable[..., Any]) -> None:
    """A header that comes byte by byte would hold one of the few places of streams."""
    with TestClient(make_app(stream_timeout_s=0.5)) as client:
        assert client.portal is not None
        status, body = client.portal.call(_drip, client.app, [b"a"] * 100, CSV, 0.05)
    assert (status, json.loads(body)["error"]["code"]) == (504, "deadline_exceeded")
    assert "not answered within 0.5 s" in json.loads(body)["error"]["message"]


def test_a_part_that_does_not_come_is_told_with_a_remedy(make_app: Callable[..., Any]) -> None:
    with TestClient(make_app(body_timeout_s=0.3)) as client:
        assert client.portal is not None
        _, body = client.portal.call(_drip, client.app, [b'"good"\n'], NDJSON, 0)
    error = json.loads(body.splitlines()[-1])["error"]
    said = "the next part of the body did not arrive within 0.3 s. Send its parts sooner, or raise "
    assert error == {"code": "body_timeout", "message": said + "DELTABERT_BODY_TIMEOUT_S"}


async def _drip(app: Any, parts: list[bytes], given: str, pause_s: float) -> tuple[int, bytes]:
    """Send parts with pauses, then nothing more; return the status and the body of the answer."""
    unsent, sent = list(parts), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s if unsent else 60)
        return {"type": "http.request", "body": unsent.pop(0), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict/toy2", "query_string": b""}
    head = {"http_version": "1.1", "headers": [(b"content-type", given.encode())]}
    await app(scope | head, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(("given", "first"), [(NDJSON, b'"good"\n'), (CSV, b"text\ngood\n")])
def test_the_end_of_the_server_is_the_last_line_of_a_stream(
    client: TestClient, caplog: pytest.LogCaptureFixture, given: str, first: bytes
) -> None:
    async def stop() -> tuple[int, bytes]:
        task = asyncio.create_task(_drip(client.app, [first], given, 0))
        await asyncio.sleep(1)
        task.cancel()  # as uvicorn does when the time of the shutdown is over
        return await task

    status, body = client.portal.call(stop)  # type: ignore[union-attr]
    assert status == 200
    assert b"good" in body.splitlines()[-2] or b"bad" in body.splitlines()[-2]
    last = body.splitlines()[-1].decode()
    assert "not_ready" in last
    assert "the server is shutting down" in last
    assert not [record for record in caplog.records if record.exc_info]


def test_a_timeout_is_refused(client: TestClient, check_error: Any) -> None:
    response = stream(client, b'"x"', **{"X-Request-Timeout-Ms": "100"})
    assert "X-Request-Timeout-Ms" in check_error(response, 422, "invalid_input")["message"]


def test_a_bug_of_the_engine_costs_its_row_alone(
    start: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from app.engine.engine import Engine

    run = Engine.predict

    def predict(engine: Engine, rows: Any, threads: int = 0) -> Any:
        if any(row.num_tokens == 9 for row in rows):
            raise RuntimeError("a bug")
        return run(engine, rows, threads)

    monkeypatch.setattr(Engine, "predict", predict)
    client = start()
    rows = lines_of(stream(client, b'"good"\n"good a a a a a a"\n"bad"\n' * 9))
    assert ["error" in row for row in rows] == [False, True, False] * 9
    assert rows[1]["error"]["code"] == "internal_error"
    told = [line for line in caplog.messages if line.startswith("rows of a stream fail")]
    assert len(told) == 1, "a line for each row would fill the disk"


def test_a_body_may_be_larger_than_the_limit_of_other_bodies(
    start: Callable[..., TestClient],
) -> None:
    client = start(max_body_bytes=1024, max_bodies_bytes=2048)
    body = b'"a good film"\n' * 1000
    assert len(lines_of(stream(client, body))) == 1000

    def parts() -> Iterator[bytes]:
        yield from (body[start : start + 700] for start in range(0, len(body), 700))

    response = client.post("/predict/toy2", content=parts(), headers={"Content-Type": NDJSON})
    assert [row["row"] for row in lines_of(response)] == list(range(1000))


def test_a_key_whose_rate_is_used_up_holds_its_stream_up(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digest_of(b"dbk_0123456789-team-0123456789").hex()
    rights = f'sha256 = "{digest}", scopes = ["predict"], tasks = ["toy2"]'
    limits = "rows_per_minute = 600, requests_per_minute = 60, burst_s = 1"
    client = start(keys=f"team = {{{rights}, {limits}}}\n")
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    headers = {"Authorization": "Bearer dbk_0123456789-team-0123456789"}
    rows = lines_of(stream(client, b'"good"\n' * 25, **headers))
    assert [row["row"] for row in rows] == list(range(25))
    assert all("label" in row for row in rows)
    assert sum(wait > 0.1 for wait in waits) >= 1  # 10 rows at once, and then 10 a second
    refused = stream(client, b'"good"\n', path="/predict/toy3", **headers)
    assert refused.status_code == 403


def test_metrics_count_the_rows_of_a_stream(start: Callable[..., TestClient]) -> None:
    client = start()
    stream(client, b'"good"\n{}\n"bad"\n')
    counted = 'deltabert_rows_total{strategy="bitfit",task="toy2"} 2.0'
    assert counted in client.get("/metrics").text


@pytest.mark.parametrize(
    ("left", "code"), [("", "unauthorized"), ('tasks = ["toy3"]', "forbidden")]
)
def test_a_stream_ends_when_its_key_is_removed(
    make_app: Callable[..., Any], gate: Any, tmp_path: Path, left: str, code: str
) -> None:
    """A stream may run for days, so its key is looked at again before each window of rows."""
    digest = digest_of(b"dbk_0123456789-team-0123456789").hex()
    rights, keys = f'[team]\nsha256 = "{digest}"\nscopes = ["predict"]\n', tmp_path / "keys.toml"
    keys.write_text(f'{rights}tasks = ["toy2"]\n')
    with TestClient(make_app(keys_file=keys)) as client:
        assert client.portal is not None
        gate.close()
        parts = [b'"good"\n' * bulk.WINDOW_ROWS] * 3
        head = {"authorization": "Bearer dbk_0123456789-team-0123456789", "content-type": NDJSON}
        asked = client.portal.start_task_soon(lambda: _asgi_lines(client.app, parts, head))
        assert gate.entered.wait(30)
        keys.write_text(f"{rights}{left}\n" if left else "")
        client.app.state.keyring.reload()  # type: ignore[attr-defined]
        gate.is_open.set()
        rows = asked.result(30)
    assert len(rows) <= bulk.WINDOW_ROWS + 1
    assert rows[-1]["row"] is None
    assert rows[-1]["error"]["code"] == code


async def _asgi_lines(app: Any, parts: list[bytes], head: dict[str, str]) -> list[dict[str, Any]]:
    """Return the lines of an answer whose connection is cut, which clients refuse to show."""
    unread, sent = list(parts), []

    async def receive() -> dict[str, Any]:
        if not unread:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": unread.pop(), "more_body": bool(unread)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "POST", "path": "/predict/toy2", "query_string": b""}
    headers = [(name.encode(), value.encode()) for name, value in head.items()]
    await app(scope | {"headers": headers, "http_version": "1.1"}, receive, send)
    return [json.loads(line) for line in b"".join(sent).splitlines()]


def test_streams_at_a_time_have_a_limit(make_app: Callable[..., Any], gate: Any) -> None:
    """Each stream may hold an unfinished row of a megabyte, for as long as its client likes."""
    head = {"content-type": NDJSON}
    with TestClient(make_app(max_body_bytes=1024, max_bodies_bytes=4 * 2**20)) as client:
        assert client.portal is not None
        gate.close()
        running = [
            client.portal.start_task_soon(lambda: _asgi_lines(client.app, [b'"good"\n'], head))
            for _ in range(2)
        ]
        assert gate.entered.wait(30)
        refused = stream(client, b'"good"\n')
        assert refused.status_code == 429, refused.text
        assert "2 streams of rows run" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        gate.is_open.set()
        assert [row["label"] for each in running for row in each.result(30)]
        assert len(lines_of(stream(client, b'"good"\n'))) == 1
