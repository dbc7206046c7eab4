"""A real cluster of two replicas: answers, a change, a killed replica, and the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, write_delta
from tests.factories import TOY_TASKS, make_delta
from tests.http.admin_key import ADMIN, KEYS
from tests.http.server_process import Server, free_port
from tests.ray_processes import REPLICA, ray_processes

pytestmark = pytest.mark.slow
START_WITHIN_S = 240.0
FAR_AHEAD_BYTES = 64 * 2**20  # more than the buffers between a client and a replica
ROW = json.dumps({"inputs": "a good film", "strategy": "head"}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("managed")


@pytest.fixture(scope="module")
def cluster(folder: Path, tiny_deltas: Path, tiny_backbone_dir: Path) -> Iterator[Server]:
    """Two replicas of one thread."""
    pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'")
    settings = {
        "DELTAS": f"{folder}:{tiny_deltas}",
        "BACKBONE": str(tiny_backbone_dir),
        "KEYS": KEYS,
        "PORT": str(free_port()),
        "ZOO": "false",
        "WARM_UP": "false",
        "PRECISION": "fp32",
    }
    given = {f"DELTABERT_{name}": value for name, value in settings.items()}
    given["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"
    server = Server(("-m", "app.cluster", "--replicas", "2"), given)
    try:
        server.wait_for("with 2 replicas", START_WITHIN_S)
        yield server
        server.process.terminate()
        assert server.process.wait(60) == 0, server.output
        assert not ray_processes(os.getpid(), "ray::")
    finally:
        server.end()


def ask(url: str, content: bytes | None = None, method: str | None = None) -> Any:
    """Return the answer of a request of the admin; an error is an answer, too."""
    headers = ADMIN | {"Content-Type": "application/json"}
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        return error


@pytest.fixture
def url(cluster: Server) -> str:
    return cluster.wait_for(r"listening on (http://[\d.:]+)", START_WITHIN_S)[1]


@pytest.fixture
def version_answers(url: str) -> Callable[[int], set[str]]:
    """A function (number of requests) -> the versions that answered them, each on a connection."""

    def version(_number: int) -> str:
        with ask(f"{url}/predict/toy2", ROW) as answer:
            return str(json.load(answer)["version"])

    def answers(number: int) -> set[str]:
        with ThreadPoolExecutor(4) as threads:
            return set(threads.map(version, range(number)))

    return answers


def test_replicas_answer_as_a_server_does(url: str) -> None:
    with ask(f"{url}/predict/toy2", ROW) as answer:
        assert len(answer.headers.get_all("X-Request-ID")) == 1
        assert set(json.load(answer)["predictions"][0]["scores"]) == set(TOY_TASKS["toy2"].labels)
    with ask(f"{url}/nothing") as answer:
        assert answer.status == 404
        error = json.load(answer)["error"]
        assert error["code"] == "unknown_path"
        assert error["request_id"] == answer.headers["X-Request-ID"]
    with ask(f"{url}/health/ready") as answer:
        assert answer.status == 200


def test_headers_of_a_client_give_ray_no_orders(url: str) -> None:
    sent = {"X-Request-ID": "<an id>", "X-Request-Timeout-Seconds": "0.000001"}
    request = urllib.request.Request(f"{url}/nothing", headers=sent)
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(request, timeout=60)
    with found.value as answer:
        assert answer.status == 404, "Ray would stop it with 408"
        request_id = answer.headers["X-Request-ID"]
        assert request_id == json.load(answer)["error"]["request_id"] != sent["X-Request-ID"]


def test_a_replica_reads_no_more_of_a_stream_than_it_answers(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    rows = b'"a"\n' * 2**14
    chunk = b"%x\r\n%b\r\n" % (len(rows), rows)
    num_bytes = 0
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall(
            b"POST /predict/toy2?strategy=head HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with suppress(TimeoutError):  # the buffers are full
            while num_bytes < FAR_AHEAD_BYTES:
                connection.sendall(chunk)
                num_bytes += len(chunk)
    assert num_bytes < FAR_AHEAD_BYTES


def test_a_new_version_answers_from_all_replicas_also_from_one_that_starts_later(
    cluster: Server,
    url: str,
    version_answers: Callable[[int], set[str]],
    tiny_backbone: Backbone,
    tmp_path: Path,
) -> None:
    versions = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.safetensors"
        write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", seed), path)
        with ask(f"{url}/deltas/toy2/head", path.read_bytes(), "PUT") as answer:
            versions.append(json.load(answer)["version"])
        assert version_answers(20) == {versions[-1]}
    before = ray_processes(cluster.process.pid, REPLICA)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    assert version_answers(20) == {versions[-1]}, "the other one answers"
    deadline = time.monotonic() + 120
    while len(set(ray_processes(cluster.process.pid, REPLICA)) - {before[0]}) < 2:
        assert time.monotonic() < deadline, cluster.output
        assert version_answers(4) == {versions[-1]}
        time.sleep(0.2)
    with ask(f"{url}/deltas/toy2/head/rollback", b"{}", "POST") as answer:
        assert json.load(answer)["version"] == versions[0]
    assert version_answers(20) == {versions[0]}


def test_the_proxy_has_errors_of_the_servers_form(cluster: Server) -> None:
    config = Path(cluster.wait_for(r"'-f', '([^']+haproxy.cfg)'", START_WITHIN_S)[1])
    (file,) = {line.split()[2] for line in config.read_text().splitlines() if "errorfile" in line}
    head, body = Path(file).read_bytes().split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["code"] == "not_ready"
    assert "retry-on conn-failure empty-response junk-response\n" in config.read_text()
