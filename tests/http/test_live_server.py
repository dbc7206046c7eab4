"""`python -m app` as users run it: a process, a port, signals, a sentence when it can't start."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.process.settings import Settings
from app.server.server import listen
from tests.http.server_process import START_WITHIN_S, STOP_WITHIN_S, call, free_port, opener, url_of


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_server_answers_finishes_its_work_and_exits_with_0(
    run_server: Callable[..., Any], number: signal.Signals
) -> None:
    with run_server() as server:
        url = url_of(server)
        assert call(url + "/health/ready")[0] == 200, server.output
        status, answer = call(url + "/predict/toy2", {"inputs": "a good film"})
        assert (status, answer["task"]) == (200, "toy2"), server.output
        assert call(url + "/nope")[1]["error"]["code"] == "unknown_path"
        answers: list[tuple[int, Any]] = []
        body = {"inputs": ["the film was not very good"] * 600}
        threads = [
            threading.Thread(target=lambda: answers.append(call(url + "/predict/toy2", body)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        wait_until_accepted(url)
        server.process.send_signal(number)
        for thread in threads:
            thread.join(STOP_WITHIN_S)
        assert server.wait() == 0, server.output
        assert [status for status, _ in answers] == [200] * 4, server.output
        assert "Traceback" not in server.output


def wait_until_accepted(url: str) -> None:
    """Until all of the load is in the queue or beyond it."""
    deadline = time.monotonic() + STOP_WITHIN_S
    while time.monotonic() < deadline:
        with opener.open(url + "/metrics", timeout=30) as response:
            text = response.read().decode()
        queued = re.search(r"^deltabert_queue_rows (\S+)", text, re.MULTILINE)
        run = re.search(r"^deltabert_batch_rows_sum (\S+)", text, re.MULTILINE)
        assert queued is not None
        assert run is not None
        # The two rows before the load, and at most one batch between the two numbers.
        if float(queued[1]) + float(run[1]) >= 4 * 600 - 256 + 2:
            return
        time.sleep(0.002)
    pytest.fail("the load never arrived")


@pytest.mark.slow
def test_logs_can_be_json(
    run_server: Callable[..., Any],
) -> None:
    with run_server(DELTABERT_LOG_FORMAT="json", DELTABERT_MAX_BATCH_ROWS="7") as server:
        url = url_of(server)
        call(url + "/predict/toy2", {"inputs": "a good film"})
        server.wait_for("/predict/{task}", 10)
        records = [json.loads(line) for line in server.lines]
    assert any("max_batch_rows=7" in record["message"] for record in records)
    (line,) = [record for record in records if record.get("route") == "/predict/{task}"]
    assert line["rows"] == 1
    assert len(line["request_id"]) == 32
    assert line["level"] == "info"


@pytest.mark.slow
def test_a_port_in_use_is_one_clear_sentence(run_server: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with run_server(DELTABERT_PORT=str(port)) as server:
            assert server.wait() == 1
        *records, sentence = server.output.splitlines()
        assert sentence == (
            f"port {port} of 127.0.0.1 is in use by another program; "
            "set DELTABERT_PORT to a free port"
        )
        assert all(" INFO " in record for record in records), server.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "GOMP_SPINCOUNT = '10000'"),
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "GOMP_SPINCOUNT = '0'"),
    ],
)
def test_threads_of_the_forward_pass_do_not_spin_for_long(
    run_server: Callable[..., Any], tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    """OpenMP reads its variables once, when torch is loaded; it says here what it has read."""
    empty = str(tmp_path)  # no backbone: the server ends after torch is loaded
    with run_server(OMP_DISPLAY_ENV="verbose", DELTABERT_BACKBONE=empty, **given) as server:
        assert server.wait() == 1
    assert expected in server.output


@pytest.mark.slow
def test_settings_that_cannot_be_used_are_one_line_each(run_server: Callable[..., Any]) -> None:
    with run_server(
        DELTABERT_PRECISON="fp32", DELTABERT_PORT="http", DELTABERT_DELTAS="/no/such/folder"
    ) as server:
        assert server.wait() == 2
    lines = server.output.splitlines()
    assert len(lines) == 3
    assert "Did you mean DELTABERT_PRECISION?" in lines[0]
    assert any("DELTABERT_PORT is 'http'" in line for line in lines)
    assert any("'/no/such/folder' is not a folder" in line for line in lines)


@pytest.mark.slow
def test_a_backbone_that_is_not_there_is_a_sentence(
    run_server: Callable[..., Any], tmp_path: Path
) -> None:
    with run_server(DELTABERT_BACKBONE=str(tmp_path)) as server:
        assert server.wait() == 1
    assert "backbone" in server.output
    assert "Traceback" not in server.output


@pytest.mark.slow
def test_an_unknown_pin_is_a_sentence(run_server: Callable[..., Any]) -> None:
    with run_server(DELTABERT_MAX_SLOTS="4", DELTABERT_PINNED="toy2, toi3/bitfit") as server:
        assert server.wait() == 2
    assert "DELTABERT_PINNED names 'toi3/bitfit': unknown task 'toi3'" in server.output
    assert "Did you mean 'toy3'" in server.output
    assert "Traceback" not in server.output


@pytest.mark.slow
def test_settings_can_be_checked_beside_a_server_that_runs(
    run_server: Callable[..., Any], tmp_path: Path
) -> None:
    check = ("-m", "app", "--check")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with run_server(arguments=check, DELTABERT_PORT=port) as server:
            assert server.wait() == 0
    assert "serving 25 deltas" in server.output
    assert server.output.endswith("the server can start with these settings\n")
    with run_server(arguments=check, DELTABERT_PINNED="toi3/bitfit") as server:
        assert server.wait() == 2, server.output
    with run_server(arguments=check, DELTABERT_BACKBONE=str(tmp_path)) as server:
        assert server.wait() == 1
    assert "can start" not in server.output
    assert "Traceback" not in server.output


@pytest.mark.slow
def test_uvicorn_can_use_the_factory(run_server: Callable[..., Any]) -> None:
    factory = ("-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(free_port()))
    with run_server(arguments=factory) as server:
        url = f"http://127.0.0.1:{factory[-1]}"
        server.wait_for("serving 25 deltas", START_WITHIN_S)
        assert server.output.count("GOMP_SPINCOUNT is not set") == 1, server.output
        for _ in range(100):  # uvicorn listens a moment later without a message
            with suppress(urllib.error.URLError):
                assert call(url + "/health/ready")[0] == 200, server.output
                return
            time.sleep(0.1)
        pytest.fail(f"no answer:\n{server.output}")


@pytest.mark.slow
def test_answers_leave_at_once() -> None:
    """Accepted connections inherit the protocol; asyncio looks at it before it sets TCP_NODELAY."""
    with listen(Settings(port=0)) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.proto == socket.IPPROTO_TCP
