"""`make bench-promises`: what many heads, the bank, and too few slots cost.

    python -m tests.bench.promises [--rounds 5] [--seconds 3] [--json FILE]

Three promises, each a ratio of two sides that are measured in turn, round after round:

- A text for 16 tasks that train their heads alone, in one request, against a request for one task.
- Rows of such tasks, in a bank with deltas of all kinds, against the bare encoder: CPU time.
- Rows/s of evenly requested tasks, 1 to 4 times as many as slots, against half as many.

The first and the last ask the real server. `make bench-http` measures fairness and overload.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deltas import Backbone, TokenizedRow, load_backbone, tokenize_texts
from deltas.encoder.bank import Bank
from deltas.encoder.cpu import CpuForward
from tests.bench.load import Connection, Request, Tally, closed_loop
from tests.bench.report import machine, publish, ratio_table
from tests.bench.server_process import ServerProcess, running_server
from tests.bench.soak.calls import http
from tests.bench.soak.scenario import sample_texts
from tests.bench.workload import MAX_LENGTH, noisy_delta, task_spec, write_deltas

PRECISION = "fp32"  # the same on every processor
_HEADS = 16
_SLOTS = 16
_PARTS = {"half": 0.5, "1x": 1, "2x": 2, "4x": 4}  # tasks for each slot
_CONNECTIONS = 16
_BATCH_ROWS = 64
_PAIRS = 40  # requests of each side in a round
_OTHERS = ("bitfit", "layernorm", "random:0.001")  # deltas beside the heads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.promises", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load in each round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    backbone = load_backbone()
    texts = [first for first, _ in sample_texts(_BATCH_ROWS)]
    ratios = {"heads16_vs_one": heads_together(backbone, texts, options.rounds)}
    ratios["heads_vs_bare_cpu"] = heads_beside_bare(backbone, texts, options.rounds)
    ratios |= cliff(backbone, texts, options.rounds, options.seconds)
    report = {
        "ratios": ratios,
        "machine": machine(len(os.sched_getaffinity(0))),
        "precision": PRECISION,
        "data": "generated sample, not GLUE",
        "rounds": options.rounds,
    }
    publish(report, ratio_table(ratios), options.json)
    return 0


def predict(task: str, text: str) -> bytes:
    """Return the bytes of a request of one row."""
    return http(f"/predict/{task}", json.dumps({"inputs": text}).encode())


def serve_deltas(
    backbone: Backbone,
    strategy: str,
    count: int,
    measure: Callable[[ServerProcess, list[str]], Any],
    **settings: str,
) -> Any:
    """Run a server of made-up tasks, and return the result of a function of it and their names."""
    names = [f"task{number}" for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "deltas"
        write_deltas(backbone, root, names, dict.fromkeys(names, strategy))
        given = {"DELTAS": str(root), "ZOO": "false", "PRECISION": PRECISION}
        given |= {"LOG_LEVEL": "warning", **settings}
        with running_server(Path(folder) / "server.log", given) as server:
            return measure(server, names)


def heads_together(backbone: Backbone, texts: Sequence[str], rounds: int) -> float:
    """Return the latency of one text for all heads over that for one head, medians."""

    def measure(server: ServerProcess, names: list[str]) -> float:
        targets = [{"task": name} for name in names]
        bodies = [json.dumps({"inputs": text, "targets": targets}).encode() for text in texts]
        together = [http("/predict", body) for body in bodies]
        alone = [predict(names[0], text) for text in texts]
        return asyncio.run(latencies(server, list(zip(alone, together, strict=True))))

    async def latencies(server: ServerProcess, pairs: list[tuple[bytes, bytes]]) -> float:
        connection, found = Connection(*server.address), []
        for _ in range(rounds + 1):
            seconds: tuple[list[float], list[float]] = [], []
            for pair in pairs[:_PAIRS]:
                for content, side in zip(pair, seconds, strict=True):
                    started = time.perf_counter()
                    response = await connection.ask(content)
                    side.append(time.perf_counter() - started)
                    if response.status != 200:
                        raise RuntimeError(f"{response.status}: {response.body[:300]!r}")
            one, together = map(statistics.median, seconds)
            found.append(together / one)
        return round(statistics.median(found[1:]), 3)  # the first round warms up

    ratio: float = serve_deltas(backbone, "head", _HEADS, measure)
    return ratio


def heads_beside_bare(backbone: Backbone, texts: Sequence[str], rounds: int) -> float:
    """Return the CPU time of rows of heads over that of the bare encoder, both in one thread."""
    torch.set_num_threads(1)
    bank = Bank(backbone, torch.device("cpu"), torch.float32)
    strategies = ["head"] * _HEADS + list(_OTHERS)
    made = [noisy_delta(backbone, task_spec("made"), name, n) for n, name in enumerate(strategies)]
    heads = bank.add([bank.stage(delta) for delta in made])[:_HEADS]
    forward = CpuForward(backbone.config, bank)
    rows = tokenize_texts(backbone.tokenizer, MAX_LENGTH, [(text,) for text in texts])
    slots = [slot for slot, _ in zip(itertools.cycle(heads), rows, strict=False)]

    def seconds(compute: Callable[[list[TokenizedRow], list[int]], object], of: list[int]) -> float:
        started = time.thread_time()
        compute(rows, of)
        return time.thread_time() - started

    bare = [0] * len(rows)
    with torch.inference_mode():
        pairs = [
            (seconds(forward.logits, slots), seconds(forward.pooled, bare))
            for _ in range(4 * rounds + 1)
        ]
    return round(statistics.median(mine / theirs for mine, theirs in pairs[1:]), 3)


def cliff(
    backbone: Backbone, texts: Sequence[str], rounds: int, seconds: float
) -> dict[str, float]:
    """Return the rows/s with 1, 2 and 4 tasks a slot over those with half a task a slot."""

    def measure(server: ServerProcess, names: list[str]) -> dict[str, list[float]]:
        rates: dict[str, list[float]] = {part: [] for part in _PARTS}
        for number, (part, share) in itertools.product(range(rounds + 1), _PARTS.items()):
            draw = random.Random(number)
            asked = draw.choices(names[: round(share * _SLOTS)], k=10_000)
            requests = [Request(predict(n, draw.choice(texts)), 1, 0) for n in asked]
            rates[part].append(asyncio.run(rows_per_s(server, requests, seconds)))
        return rates

    async def rows_per_s(server: ServerProcess, requests: list[Request], seconds: float) -> float:
        tally, each, started = Tally(), iter(requests), time.perf_counter()
        until = started + seconds
        loops = (closed_loop(*server.address, each, until, tally) for _ in range(_CONNECTIONS))
        await asyncio.gather(*loops)
        return tally.rows / (time.perf_counter() - started)

    count = round(max(_PARTS.values()) * _SLOTS)
    rates = serve_deltas(backbone, "bitfit", count, measure, MAX_SLOTS=str(_SLOTS))
    half = rates.pop("half")
    return {
        f"cliff_http_{part}": round(
            statistics.median(a / b for a, b in zip(each[1:], half[1:], strict=True)), 3
        )
        for part, each in rates.items()
    }


if __name__ == "__main__":
    sys.exit(main())
