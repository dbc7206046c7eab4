"""Faults of the machine and of our own code: readiness tells them at once, and no request hangs."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import time
import urllib.error
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from app.batching import workers
from app.batching.queue import RowQueue
from app.engine.engine import Engine, EngineRow, Outcome
from app.http import readiness
from app.http.telemetry.metrics import Metrics
from deltas import load_backbone
from tests.http.server_process import Server, call, free_port, url_of

CheckError = Callable[..., dict[str, Any]]
Start = Callable[..., TestClient]
RunServer = Callable[..., Any]
ROW = {"inputs": "a good film"}


class Faults:
    """Raises an error before the real forward pass of some rows."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.times = 0  # left
        self.only: str | None = None  # task

    def inject(self, error: BaseException, times: int = 10**9, only: str | None = None) -> None:
        self.error, self.times, self.only = error, times, only

    def check(self, rows: Sequence[EngineRow]) -> None:
        concerned = any(self.only in (None, row.record.key[0]) for row in rows)
        if self.error is not None and self.times > 0 and concerned:
            self.times -= 1
            raise self.error


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults, predict = Faults(), Engine.predict

    def run(engine: Engine, rows: Sequence[EngineRow], threads: int = 0) -> list[Outcome]:
        faults.check(rows)
        return predict(engine, rows, threads)

    monkeypatch.setattr(Engine, "predict", run)
    return faults


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_WATCH_S", 0.05)
    monkeypatch.setattr(readiness, "_FAILING_S", 0.3)


def wait_until_dead(client: TestClient, within_s: float) -> str:
    """Wait until only a restart helps; returns the reason for clients."""
    deadline = time.monotonic() + within_s
    while (answer := client.get("/health/live")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    message: str = answer.json()["error"]["message"]
    return message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["a bug", "MemoryError", "OutOfMemoryError", "DefaultCPUAllocator"],
)
def test_a_forward_pass_that_fails_once_fails_one_request(
    start: Start, faults: Faults, check_error: CheckError, error: Exception
) -> None:
    client = start()
    assert client.get("/health/ready").status_code == 200
    faults.inject(error, times=1)
    check_error(client.post("/predict/toy2", json=ROW), 500, "internal_error")
    assert client.get("/health/ready").status_code == 200
    assert client.post("/predict/toy2", json=ROW).status_code == 200


def test_readiness_tells_a_failing_forward_pass_before_its_last_result_is_a_second_old(
    start: Start, faults: Faults, check_error: CheckError
) -> None:
    client = start()
    assert client.get("/health/ready").status_code == 200
    faults.inject(RuntimeError("always"))
    check_error(client.post("/predict/toy2", json=ROW), 500, "internal_error")
    error = check_error(client.get("/health/ready"), 503, "not_ready")
    assert "the forward pass raised RuntimeError" in error["message"]
    assert client.get("/health/live").status_code == 200
    faults.times = 0
    time.sleep(1.0)
    assert client.get("/health/ready").status_code == 200


@pytest.mark.usefixtures("_impatient")
def test_predictions_that_always_fail_end_the_server(
    start: Start, faults: Faults, check_error: CheckError
) -> None:
    client = start()
    faults.inject(RuntimeError("CUDA error: an illegal memory access was encountered"))
    check_error(client.post("/predict/toy2", json=ROW), 500, "internal_error")
    assert "must be restarted" in wait_until_dead(client, 5)
    check_error(client.post("/predict/toy2", json=ROW), 503, "not_ready")
    check_error(client.get("/health/ready"), 503, "not_ready")


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(("watch_s", "for_s"), [(0.05, 1.0), (0.5, 2.0)])
def test_rows_of_one_client_that_always_fail_do_not_end_the_server(
    start: Start,
    faults: Faults,
    check_error: CheckError,
    monkeypatch: pytest.MonkeyPatch,
    watch_s: float,
    for_s: float,
) -> None:
    """Between two checks more time may pass than failures are given, on a busy machine."""
    monkeypatch.setattr(readiness, "_WATCH_S", watch_s)
    client = start()
    faults.inject(RuntimeError("these rows"), only="toymulti")
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        check_error(client.post("/predict/toymulti", json=ROW), 500, "internal_error")
    assert client.get("/health/ready").status_code == 200


def test_a_forward_pass_that_never_ends_ends_the_server(
    start: Start, gate: Any, check_error: CheckError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_HANGING_S", 0.3)
    client = start(shutdown_timeout_s=0.1)
    gate.close()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/predict/toy2", json=ROW)
        assert "must be restarted" in wait_until_dead(client, 5)
        check_error(waiting.result(5), 503, "not_ready")
    gate.is_open.set()


def test_a_fault_of_the_queue_ends_the_server(
    start: Start, check_error: CheckError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the event loop must not leave requests that wait for ever."""
    client = start()

    def run_out(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(RowQueue, "take", run_out)
    check_error(client.post("/predict/toy2", json=ROW), 503, "not_ready")
    assert "must be restarted" in wait_until_dead(client, 1)


def test_metrics_that_fail_harm_no_answer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start()

    def run_out(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Metrics, "on_batch", run_out)
    assert client.post("/predict/toy2", json=ROW).status_code in (200, 500)
    assert client.get("/health/live").status_code == 200


def test_a_failed_pass_keeps_no_memory_while_its_requests_run_alone(
    start: Start, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of its traceback would hold its tensors, and memory is short."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    run = Engine.predict

    def run_out(engine: Engine, rows: Sequence[EngineRow], threads: int = 0) -> list[Outcome]:
        if len(rows) > 1:
            activations = torch.zeros(1000)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("too many rows")
        alive.extend(tensor() is not None for tensor in held)
        return run(engine, rows, threads)

    monkeypatch.setattr(Engine, "predict", run_out)
    client = start()
    gate.close()  # it is in front of the real pass: the second and third request share a batch
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(client.post, "/predict/toy2", json=ROW)]
        assert gate.entered.wait(10)
        answers += [pool.submit(client.post, "/predict/toy2", json=ROW) for _ in range(2)]
        while "deltabert_queue_rows 2.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        gate.is_open.set()
        assert [answer.result(20).status_code for answer in answers] == [200] * 3
    assert len(held) == 1, "two requests shared a batch"
    assert alive[-2:] == [False, False]


def test_no_file_stays_mapped(tiny_backbone_dir: Path, tmp_path: Path) -> None:
    """A mapped file that is cut ends the process with SIGBUS (decision 0018)."""
    folder = tmp_path / "backbone"  # other tests of this process may have mapped the shared one
    shutil.copytree(tiny_backbone_dir, folder)
    backbone = load_backbone(str(folder))
    assert backbone.weights
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")


# Runs the server with a forward pass that does what a file says.
FAULTY = """
import os, sys
from pathlib import Path
from app.__main__ import main
from app.engine.engine import Engine

predict = Engine.predict

def faulty(engine, rows, threads=0):
    fault = Path(os.environ["FAULT"])
    if fault.exists():
        exec(fault.read_text())
    return predict(engine, rows, threads)

Engine.predict = faulty
main([])
"""


@pytest.mark.slow
def test_a_dead_batch_thread_ends_the_process_for_its_supervisor(
    run_server: RunServer, tmp_path: Path
) -> None:
    fault = tmp_path / "fault"
    with run_server(("-c", FAULTY), FAULT=str(fault)) as server:
        url = url_of(server)
        assert call(url + "/health/ready")[0] == 200
        fault.write_text("raise SystemExit(7)")
        started = time.monotonic()
        status, body = call(url + "/predict/toy2", ROW)
        assert (status, body["error"]["code"]) == (503, "not_ready")
        assert server.wait() == 1, server.output
        assert time.monotonic() - started < 3
        assert server.output.count("no batch can run: stopping") == 1


def memory_of(server: Server) -> int:
    """Return the address space of a server in bytes."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text(encoding="utf-8").split()[0]
    return int(pages) * resource.getpagesize()


def status_of(url: str, body: Any) -> int:
    """Return the status of an answer, 0 if the connection was closed without one."""
    try:
        return call(url, body)[0]
    except (ConnectionError, urllib.error.URLError):
        return 0


@pytest.mark.slow
def test_a_server_without_memory_answers_errors_and_heals(run_server: RunServer) -> None:
    """Each answer is right, an announced error, or a closed connection; then all are right."""
    rows = {"inputs": ["the film was not very good, and long " * 20] * 512}
    with run_server(DELTABERT_MAX_BATCH_TOKENS="16384") as server:
        url = url_of(server)
        expected = call(url + "/predict/toy2", ROW)
        assert expected[0] == 200
        limit = memory_of(server) + 2**20
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, -1))
        found = [status_of(url + "/predict/toy2", rows) for _ in range(3)]
        assert set(found) <= {0, 200, 429, 500, 503}, server.output
        assert 500 in found, "the limit is too high to be a test"
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (-1, -1))
        assert call(url + "/predict/toy2", ROW) == expected
        assert call(url + "/health/ready")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is always full")
@pytest.mark.parametrize("target", ["full disk", "closed pipe", "pipe that is not read"])
def test_a_log_that_cannot_be_written_harms_nothing(run_server: RunServer, target: str) -> None:
    if target == "full disk":
        log = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, log = os.pipe()
        fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, 4096)
        if target == "closed pipe":
            os.close(reading)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with run_server(DELTABERT_PORT=str(port), stderr=log) as server:
        os.close(log)
        deadline = time.monotonic() + 120
        while True:
            try:
                assert call(url + "/health/ready")[0] == 200
                break
            except OSError:
                assert server.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        for _ in range(50):
            assert call(url + "/predict/toy2", ROW)[0] == 200
        assert call(url + "/nope")[0] == 404
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
