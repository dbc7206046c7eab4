"""The page's client against the real app over a real socket, and against impostors."""

from __future__ import annotations

import hashlib
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone
from frontend import client as client_module
from frontend.client import Client, Target, curl_command, fan_out_body, open_session
from frontend.errors import ServerError, UnreachableError

Serve = Callable[..., Client]
Stub = Callable[..., Client]


def connect(url: str) -> Client:
    return Client(open_session(url), url)


@pytest.fixture(scope="module")
def serve(tiny_backbone: Backbone, tiny_deltas: Path) -> Iterator[Serve]:
    """A function (lifespan="on", **settings) -> client of a real server on a free port."""

    @contextmanager
    def running(lifespan: Any, **changes: Any) -> Iterator[str]:
        given: dict[str, Any] = {"deltas": (tiny_deltas,), "zoo": False, "warm_up": False}
        app = create_app(Settings(**(given | changes)), backbone=tiny_backbone)
        config = uvicorn.Config(app, port=0, log_level="warning", lifespan=lifespan)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                assert time.monotonic() < deadline, "the server took more than 60 s to start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

    with ExitStack() as stack:
        yield lambda lifespan="on", **changes: connect(
            stack.enter_context(running(lifespan, **changes))
        )


@pytest.fixture(scope="module")
def client(serve: Serve) -> Client:
    """A client of a server with default settings."""
    return serve()


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A function (status, body, headers) -> client of something that always answers so."""

    @contextmanager
    def running(status: int, body: bytes, headers: dict[str, str]) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815  (names that http.server looks for)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join(10)

    with ExitStack() as stack:
        yield lambda status, body, **headers: connect(
            stack.enter_context(running(status, body, headers))
        )


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_running_server_is_alive(client: Client) -> None:
    assert client.is_alive()
    client.probe()


def test_tasks_say_what_the_server_serves(client: Client) -> None:
    tasks = {task.name: task for task in client.tasks()}
    assert {"toy2", "toy3", "toyreg", "toymulti"} <= set(tasks)
    assert tasks["toy3"].text_fields == ("premise", "hypothesis")
    assert tasks["toy3"].labels == ("yes", "maybe", "no")
    assert tasks["toy2"].kind == "single_label"
    assert tasks["toy2"].max_length == 32
    assert "bitfit" in tasks["toy2"].strategies


def test_benchmark_has_a_row_for_every_delta(client: Client) -> None:
    benchmark = client.benchmark()
    served = {(task.name, strategy) for task in client.tasks() for strategy in task.strategies}
    assert {(row.task, row.strategy) for row in benchmark.rows} == served
    (row,) = benchmark.of("toy2", "bitfit")
    assert (row.metric, row.value, row.split, row.split_rows) == (
        "accuracy",
        0.25,
        "validation",
        20,
    )
    assert 0 < row.trained_share < 1
    assert row.train_rows == 100
    assert benchmark.backbone.size_bytes > benchmark.backbone.parameters > 0
    assert len(benchmark.of("toy2")) == len([pair for pair in served if pair[0] == "toy2"])


def test_a_delta_is_described_by_its_manifest(client: Client) -> None:
    details = client.delta("toy2", "random:0.05")
    assert details.manifest["strategy"]["name"] == "random:0.05"
    assert details.version == client.benchmark().of("toy2", "random:0.05")[0].version


def test_one_call_asks_every_strategy(client: Client) -> None:
    (task,) = [task for task in client.tasks() if task.name == "toy2"]
    targets = [Target("toy2", strategy) for strategy in task.strategies]
    answer = client.predict({"sentence": "a very good film"}, targets)
    assert [item.strategy for item in answer.predictions] == list(task.strategies)
    assert answer.latency_ms > 0
    for item in answer.predictions:
        assert item.kind == "single_label"
        assert item.labels[0] == max(item.scores, key=lambda label: item.scores[label])
        assert sum(item.scores.values()) == pytest.approx(1.0)
        assert item.score == item.scores[item.labels[0]]
        assert not item.truncated
    assert len({item.version for item in answer.predictions}) == len(targets)


def test_rows_of_a_table_take_one_call_for_all_strategies(client: Client) -> None:
    calls: list[str] = []
    session = open_session(client.url)
    session.hooks["response"].append(lambda answer, **_: calls.append(answer.url))
    rows = ["a film", "not a good film"]
    (task,) = [task for task in client.tasks() if task.name == "toy2"]
    strategies = list(reversed(task.strategies))
    found = Client(session, client.url).predict_rows("toy2", rows, strategies)
    assert [[item.strategy for item in answers] for answers in found] == [
        [strategy] * 2 for strategy in strategies
    ]
    for strategy, answers in zip(strategies, found, strict=True):
        for row, item in zip(rows, answers, strict=True):
            (alone,) = client.predict(row, [Target("toy2", strategy)]).predictions
            assert item.labels == alone.labels
    assert calls == [f"{client.url}/predict"]


def test_every_kind_of_task_is_understood(client: Client) -> None:
    pair = {"text": "the film", "text_pair": "not bad"}
    (value,) = client.predict(pair, [Target("toyreg", "bitfit")]).predictions
    assert value.value is not None
    assert (value.labels, value.scores, value.score) == ((), {}, None)
    (several,) = client.predict("the film", [Target("toymulti", "bitfit")]).predictions
    assert several.value is None
    assert set(several.labels) == {name for name, score in several.scores.items() if score >= 0.5}


def test_a_long_text_is_reported_as_truncated(client: Client) -> None:
    (item,) = client.predict("good " * 100, [Target("toy2", "bitfit")]).predictions
    assert item.truncated


def test_an_unknown_task_names_a_near_match(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.predict("good", [Target("toy22")])
    assert caught.value.status == 404
    assert "toy2" in str(caught.value)
    assert caught.value.request_id


def test_wrong_fields_are_named(client: Client) -> None:
    with pytest.raises(ServerError, match="can't use this input") as caught:
        client.predict({"sentense": "good"}, [Target("toy2")])
    assert caught.value.status == 422
    assert any("sentence" in hint for hint in caught.value.hints)


def test_a_strategy_with_odd_characters_stays_one_path_segment(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.delta("toy2", "../head?x=1#")
    assert caught.value.status == 404
    assert "../head?x=1#" in str(caught.value)


def test_a_text_over_the_limit_is_refused_in_words(serve: Serve) -> None:
    with pytest.raises(ServerError, match="larger than the server accepts") as caught:
        serve(max_text_chars=10).predict("far too long", [Target("toy2")])
    assert caught.value.status == 413


def test_a_server_without_an_engine_is_not_ready(serve: Serve) -> None:
    headless = serve(lifespan="off")
    with pytest.raises(ServerError, match="not ready") as caught:
        headless.predict("good", [Target("toy2")])
    assert caught.value.status == 503
    assert not isinstance(caught.value, UnreachableError)


def test_a_full_queue_and_a_missed_deadline_say_what_to_do(serve: Serve, stub: Stub) -> None:
    two = [Target("toy2", "bitfit"), Target("toy2", "head")]
    with pytest.raises(ServerError) as caught:
        serve(deadline_s=1e-6).predict("good", two)
    assert caught.value.status == 504
    assert "try again" in caught.value.message
    body = b'{"error": {"code": "overloaded", "message": "", "details": null, "request_id": "r1"}}'
    with pytest.raises(ServerError, match="Try again in 7 s") as caught:
        stub(429, body, **{"Retry-After": "7"}).predict("good", two)
    assert caught.value.request_id == "r1"


def test_no_server_listens(free_port: int) -> None:
    lost = connect(f"http://127.0.0.1:{free_port}")
    assert not lost.is_alive()
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{free_port} can't be reached"):
        lost.tasks()


def test_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PROBE_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = connect(f"http://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        assert not silent.is_alive()
        assert time.monotonic() - started < 2
        with pytest.raises(UnreachableError, match="too long"):
            silent._call("GET", "/tasks", read_timeout_s=0.05)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1/"])
def test_an_invalid_address(url: str) -> None:
    with pytest.raises(UnreachableError, match="not an address"):
        connect(url).tasks()


def test_user_and_password_are_sent_and_never_shown(free_port: int) -> None:
    client = connect(f"http://alice:s3cret@127.0.0.1:{free_port}/")
    assert client.url == f"http://127.0.0.1:{free_port}"
    assert client.address == f"http://alice:s3cret@127.0.0.1:{free_port}"
    with pytest.raises(UnreachableError) as caught:
        client.tasks()
    assert "s3cret" not in str(caught.value)
    with pytest.raises(UnreachableError) as caught:
        connect("http://alice:s3cret@[::1").tasks()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http://", "ftp://", "http:/", "//", ""])
def test_an_address_with_a_password_in_any_spelling_shows_none_of_it(scheme: str) -> None:
    """People write passwords as they are, and a slash or bracket in one makes it no address."""
    for sign, host in product("/#?@ %\\:[]", ("127.0.0.1:9", "[::1", "127.0.0.1:port", "", "a..b")):
        client = connect(f"{scheme}alice:s3{sign}cret@{host}")
        with pytest.raises(UnreachableError) as caught:
            client.tasks()
        for shown in (client.url, str(caught.value)):
            assert "alice" not in shown
            assert "cret" not in shown


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[]"), (404, b"<html>"), (404, b"{}"), (502, b"bad gateway")],
)
def test_another_program_at_the_address(stub: Stub, status: int, body: bytes) -> None:
    with pytest.raises(ServerError, match="not the way a DeltaBERT server does") as caught:
        stub(status, body).tasks()
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b'{"tasks": 3}', "tasks is wrong: Input should be a valid tuple"),
        (b'{"tasks": [3]}', "tasks.0 is wrong: Input should be a dictionary"),
        (b'{"tasks": [{"task": "toy2"}]}', "kind is missing"),
        (b"{}", "tasks is missing"),
    ],
)
def test_an_answer_of_another_version(stub: Stub, body: bytes, complaint: str) -> None:
    with pytest.raises(ServerError, match=complaint):
        stub(200, body).tasks()


def keyed(url: str, key: str) -> Client:
    return Client(open_session(url, key), url)


def test_a_key_is_sent_and_a_server_without_it_says_what_to_set(serve: Serve) -> None:
    secret = "dbk_of-the-page"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    url = serve(keys=f'page = {{sha256 = "{digest}", scopes = ["predict"], tasks = ["toy2"]}}').url
    assert [task.name for task in keyed(url, secret).tasks()] == ["toy2"]
    assert keyed(url, secret).predict("a good film", [Target("toy2")]).predictions
    with pytest.raises(ServerError, match=r"is not for this.*may not use the task 'toy3'"):
        keyed(url, secret).predict("a good film", [Target("toy3")])
    for client in (connect(url), keyed(url, "dbk_wrong")):
        assert client.is_alive()
        with pytest.raises(ServerError, match="Set FRONTEND_API_KEY"):
            client.tasks()
    behind_a_proxy = url.replace("http://", "http://alice:s3cret@")
    assert keyed(behind_a_proxy, secret).tasks()


@pytest.mark.parametrize("key", ["dbk_s3cret\r\nX: y", "dbk_s3cret é", "dbk_s3cret\udc80"])
def test_a_key_that_cannot_be_sent_is_never_shown(serve: Serve, key: str) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    url = serve(keys=f'page = {{sha256 = "{digest}", scopes = [], tasks = ["*"]}}').url
    with pytest.raises(ServerError, match="Set FRONTEND_API_KEY") as caught:
        keyed(url, key).tasks()
    assert "s3cret" not in str(caught.value)


def test_a_key_does_not_follow_a_redirect_to_another_host(serve: Serve, stub: Stub) -> None:
    seen: list[str | None] = []

    class Watched(requests.Session):
        def send(self, request: Any, **options: Any) -> requests.Response:
            seen.append(request.headers.get("Authorization"))
            return super().send(request, **options)

    other = stub(200, b'{"tasks": []}').url
    here = stub(302, b"", Location=f"{other.replace('127.0.0.1', 'localhost')}/tasks").url
    session = Watched()
    session.auth = open_session(here, "dbk_s3cret").auth
    session.trust_env = False
    Client(session, here).tasks()
    assert seen[0] == "Bearer dbk_s3cret"
    assert seen[1:] == [None]


def test_a_key_beside_the_credentials_of_a_proxy_follows_no_redirect_either(
    serve: Serve, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    send = requests.Session.send

    def watched(session: Any, request: Any, **options: Any) -> requests.Response:
        seen.append(request.headers.get("X-API-Key"))
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", watched)
    other = stub(200, b'{"tasks": []}').url
    here = stub(302, b"", Location=f"{other.replace('127.0.0.1', 'localhost')}/tasks").url
    keyed(here.replace("http://", "http://alice:pw@"), "dbk_s3cret").tasks()
    assert seen == ["dbk_s3cret", None]


def test_a_local_server_is_not_asked_through_a_proxy(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert connect(client.url).is_alive()
    assert open_session("http://deltabert.example.org").trust_env


def test_the_client_uses_the_given_session(client: Client) -> None:
    seen: list[str] = []

    class Watched(requests.Session):
        def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
            assert options["timeout"], "a call without a timeout may never end"
            seen.append(f"{method} {url}")
            return super().request(method, url, *args, **options)

    with Watched() as session:
        Client(session, client.url + "/").tasks()
    assert seen == [f"GET {client.url}/tasks"]


@pytest.mark.parametrize(
    "text", ["a good film", 'it\'s "quoted" $HOME `id` \\ \n new line', "日本 🙂"]
)
def test_the_curl_command_sends_the_same_request(client: Client, text: str) -> None:
    targets = [Target("toy2", "bitfit")]
    command = curl_command(client.url, "/predict", fan_out_body({"sentence": text}, targets))
    words = shlex.split(command)
    assert words[:3] == ["curl", "-s", f"{client.url}/predict"]
    shell = f"printf %s {command.partition(' -d ')[2]}"
    data = subprocess.run(["sh", "-c", shell], capture_output=True, check=True).stdout
    response = requests.post(
        words[2], data=data, headers={"Content-Type": "application/json"}, timeout=30
    )
    (found,) = response.json()["results"]
    (item,) = client.predict({"sentence": text}, targets).predictions
    assert found["predictions"][0]["scores"] == pytest.approx(dict(item.scores), abs=1e-6)
