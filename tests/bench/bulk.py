"""`make bench-bulk`: files at engine speed, and requests beside a stream of rows.

    python -m tests.bench.bulk [--rows 20000] [--rounds 3] [--seconds 20] [--json FILE]

First, generated rows go through `deltabert predict`, and tokenized ones through the bare engine as
in `make bench-serving`, in turn. The ratio is the median over the rounds. Then one client sends one
row after another at a steady rate to a real server, without and with a stream beside it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from app.engine.engine import Engine
from app.pipeline.bulk.files import input_file
from app.pipeline.bulk.run import BulkOptions, FileRun, open_engine
from deltas import Backbone, Store, load_backbone
from tests.bench.report import machine, publish, wanted_table
from tests.bench.server_process import ServerProcess, running_server
from tests.bench.serving import cut, prepare
from tests.bench.workload import load_workload, write_deltas

WANTED = {"files_vs_engine": "at least 0.95", "p99_with_stream": "at most 2"}
_ENGINE_ROWS = 4000
_BATCH_TOKENS = 4096
_EVERY_S = 0.1
_TASK = "sst2"


def main() -> int:
    """Run both parts; print tables; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bulk", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each kind of traffic")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare(options.threads)
    backbone = load_backbone()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = unique_texts(backbone)
        report = measure_files(backbone, folder, texts, options)
        report |= measure_beside(folder, texts, options.seconds)
    report |= {"machine": machine(options.threads, "cpu"), "rows": options.rows}
    ratios = {name: report[name] for name in WANTED}
    lines = [f"{name}: {value}" for name, value in report.items() if name not in WANTED]
    publish(report, [*lines, *wanted_table(ratios, WANTED)], options.json)
    return 0


def unique_texts(backbone: Backbone) -> Iterator[str]:
    """Yield texts of the workload without end, none of them twice: equal ones would run once."""
    known = [" ".join(texts) for texts in load_workload(backbone).texts]
    number = 0
    while True:
        yield f"{number} {known[number % len(known)]}"
        number += 1


def measure_files(
    backbone: Backbone, folder: Path, texts: Iterator[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure rows per second of files and of the engine, and the growth of the memory."""
    write_deltas(backbone, folder / "deltas", [_TASK], {_TASK: "bitfit"})
    record = Store([folder / "deltas"], backbone=backbone.ref).resolve(_TASK)
    engine = open_engine([record], backbone, device="cpu", precision="auto")
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(options.rows):
            file.write(json.dumps({"text": next(texts)}) + "\n")
    num_taken = min(options.rows, _ENGINE_ROWS)
    taken = [(next(texts),) for _ in range(num_taken)]
    batches = cut(engine.tokenize(record, taken), _BATCH_TOKENS)
    rates: dict[str, list[float]] = {"engine": [], "files": []}
    peaks = []
    for number in range(options.rounds + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                engine.predict(batch, options.threads)
        engine_rate = num_taken / (time.perf_counter() - started)
        files_rate = options.rows / answer_file(engine, path, folder, options.threads)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        if number:  # the first round warms up
            rates["engine"].append(engine_rate)
            rates["files"].append(files_rate)
        sys.stderr.write(f"round {number} of {options.rounds} done\n")
    pairs = zip(rates["files"], rates["engine"], strict=True)
    return {
        "files_vs_engine": round(statistics.median(files / bare for files, bare in pairs), 3),
        "files_rows_per_s": round(statistics.median(rates["files"])),
        "engine_rows_per_s": round(statistics.median(rates["engine"])),
        "peak_bytes_by_round": peaks,
        "precision": engine.precision,
    }


def answer_file(engine: Engine, path: Path, folder: Path, threads: int) -> float:
    """Answer a file; returns the seconds."""
    output = folder / "out.jsonl"
    options = BulkOptions(threads=threads, overwrite=True)
    started = time.perf_counter()
    deltas = {_TASK: engine.store.resolve(_TASK)}
    FileRun(engine, deltas, [input_file(str(path))], str(output), "jsonl", options).answer()
    return time.perf_counter() - started


def measure_beside(folder: Path, texts: Iterator[str], seconds: float) -> dict[str, Any]:
    """Measure the latency of single rows without and with a stream beside them."""
    rows = [next(texts) for _ in range(2000)]
    log = folder / "server.log"
    settings = {"DELTAS": str(folder / "deltas"), "ZOO": "false"}
    with running_server(log, settings) as server:
        latencies(server, rows, seconds / 4)  # warms up
        alone = latencies(server, rows, seconds)
        stream = Stream(server, rows)
        stream.start()
        began, before = time.perf_counter(), stream.num_answers
        beside = latencies(server, rows, seconds)
        rate = (stream.num_answers - before) / (time.perf_counter() - began)
        stream.stop()
        again = latencies(server, rows, seconds)
    quiet = [*alone, *again]
    return {
        "p99_with_stream": round(quantile(beside, 0.99) / quantile(quiet, 0.99), 2),
        "p50_ms": [round(1000 * quantile(each, 0.5), 1) for each in (alone, beside, again)],
        "p99_ms": [round(1000 * quantile(each, 0.99), 1) for each in (alone, beside, again)],
        "stream_rows_per_s": round(rate),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def latencies(server: ServerProcess, rows: Sequence[str], seconds: float) -> list[float]:
    """Send single rows at a steady rate; returns the seconds of each from its due time on."""
    connection = http.client.HTTPConnection(*server.address)
    found = []
    started = time.perf_counter()
    for number in range(max(int(seconds / _EVERY_S), 1)):
        due = started + number * _EVERY_S
        time.sleep(max(0.0, due - time.perf_counter()))
        body = json.dumps({"inputs": rows[number % len(rows)]})
        connection.request("POST", f"/predict/{_TASK}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        found.append(time.perf_counter() - due)
    connection.close()
    return found


class Stream:
    """A stream that sends and reads at the same time until it is stopped."""

    def __init__(self, server: ServerProcess, rows: Sequence[str]) -> None:
        self._rows = rows
        self._connection = http.client.HTTPConnection(*server.address)
        self._is_stopped = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._send, self._read)]
        self.num_answers = 0

    def start(self) -> None:
        """Begin to send; returns after the first answers."""
        self._connection.connect()
        for thread in self._threads:
            thread.start()
        while not self.num_answers:
            time.sleep(0.01)

    def stop(self) -> None:
        """Send no more rows, and read the answers to the last ones."""
        self._is_stopped.set()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _send(self) -> None:
        connection = self._connection
        connection.putrequest("POST", f"/predict/{_TASK}")
        connection.putheader("Content-Type", "application/x-ndjson")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        number = 0
        while not self._is_stopped.is_set():
            part = json.dumps(self._rows[number % len(self._rows)]).encode() + b"\n"
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            number += 1
        connection.send(b"0\r\n\r\n")

    def _read(self) -> None:
        answer = http.client.HTTPResponse(self._connection.sock, method="POST")
        answer.begin()
        for _ in answer:
            self.num_answers += 1


if __name__ == "__main__":
    sys.exit(main())
