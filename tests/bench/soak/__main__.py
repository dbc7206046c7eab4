"""`make soak`: many clients of every kind for a long time, and every answer compared.

    python -m tests.bench.soak [--minutes 30] [--clients 32] [--slots 8] [--changes all] [--json F]

The real server runs in a process of its own with few slots; the clients predict, fan out, send
lists, leave, set deadlines, send bad requests, and read pages. Meanwhile admins publish, replace,
roll back, split and remove some of the deltas (`--changes replace` only replaces, `none` changes
nothing). Each answer is compared with the one that its version gives alone, and after the
acknowledgement of a change only the new version may answer. Ends with status 1 after a wrong
answer, a 5xx that was not announced, a request without an answer, a changed digest, or, in a soak
of at least 30 minutes, memory that grows by more than 1 % an hour. Ctrl-C ends early, with the
table of the numbers so far. A line a minute tells the progress. Settings of the server
(DELTABERT_THREADS and others) may be given in the environment; on a machine that others use, too,
DELTABERT_DEADLINE_S=120 keeps a stall of the machine from counting as one of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltas import load_backbone
from tests.bench.load import Tally, percentile
from tests.bench.report import machine, publish
from tests.bench.server_process import Sample, ServerProcess, running_server
from tests.bench.soak.admin import ALL, KEEP_VERSIONS, NONE, REPLACE, make_admins
from tests.bench.soak.calls import LATE, REFUSED, RIGHT, CallMaker
from tests.bench.soak.clients import FAULTS, Counts, ask_alone, many_clients
from tests.bench.soak.report import digest_of, measured, table, verdict
from tests.bench.soak.scenario import (
    PRECISION,
    Scenario,
    compute_alone,
    make_changing,
    sample_texts,
    write_soak_deltas,
)
from tests.http.admin_key import KEYS

_TELL_EVERY_S = 60.0
_PREFIX = "DELTABERT_"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; print a table; write JSON if asked to; returns the exit status."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "deltas"
        backbone = load_backbone(options.backbone)
        _tell("writing the deltas, and computing every answer alone ...")
        write_soak_deltas(backbone, root)
        texts = sample_texts(options.texts)
        scenario = compute_alone(backbone, root, texts)
        if options.changes != NONE:
            changing = make_changing(backbone, Path(folder) / "versions", texts)
            scenario = replace(scenario, changing=changing)
        report = run(options, root, scenario)
    report |= {"machine": machine(len(os.sched_getaffinity(0))), "precision": PRECISION}
    reasons = verdict(report)
    lines = [f"| {' | '.join(row)} |" for row in table(report)]
    lines.insert(1, "|---|---|---|")
    said = [f"FAILED: {reason}" for reason in reasons] or ["passed"]
    publish(report, [*lines, "", *report["faults"], *said], options.json)
    return 1 if reasons else 0


def _stop(number: int, _frame: object) -> None:
    """End as after an error, so that the server ends, too."""
    sys.exit(128 + number)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--slots", type=int, default=8, help="resident deltas of the server")
    parser.add_argument("--texts", type=int, default=12, help="that each delta answers")
    parser.add_argument("--changes", choices=(ALL, REPLACE, NONE), default=ALL)
    parser.add_argument("--backbone", help="hub id or folder; default: the packaged one")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, root: Path, scenario: Scenario) -> dict[str, Any]:
    """Start the server, let the clients at it, and return the report.

    Args:
        options: command line.
        root: folder of the deltas; the server's log is written beside it.
        scenario: the right answers.
    """
    settings = {
        "DELTAS": str(root),
        "ZOO": "false",
        "PRECISION": PRECISION,
        "MAX_SLOTS": str(options.slots),
        "LOG_LEVEL": "warning",
        "KEEP_VERSIONS": str(KEEP_VERSIONS),
    }
    settings |= {"KEYS": KEYS} if scenario.changing else {}
    settings |= {"BACKBONE": options.backbone} if options.backbone else {}
    with running_server(root.parent / "server.log", settings) as server:
        report = asyncio.run(soak(options, server, scenario))
    sizes = {"clients": options.clients, "slots": options.slots, "deltas": len(scenario.answers)}
    sizes |= {"changing": len(scenario.changing), "changes": options.changes}
    given = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if _PREFIX in name]
    return sizes | {"environment": given} | report


async def soak(
    options: argparse.Namespace, server: ServerProcess, scenario: Scenario
) -> dict[str, Any]:
    """Probe the quiet server, run the clients, and probe it again."""
    counts, probe, samples = Counts(), Tally(), list[Sample]()
    probes = CallMaker(scenario, seed=0).probes()
    before = await ask_alone(server.address, probes, counts)
    admins = make_admins(server.address, scenario, counts, options.changes)
    _tell(f"{options.clients} clients for {options.minutes:g} minutes ...")
    started = time.perf_counter()
    tasks = {
        asyncio.create_task(many_clients(server.address, scenario, options.clients, counts, probe)),
        asyncio.create_task(server.sample_all(samples, started)),
        *(asyncio.create_task(admin.work()) for admin in admins),
        asyncio.create_task(_tell_all(counts, probe, samples, options.minutes)),
    }
    ended = await _until_stopped(tasks, 60 * options.minutes)
    server.check_running()
    for task in ended:
        task.result()  # raises the error that ended the soak
    samples.append(server.sample(time.perf_counter() - started))
    await asyncio.to_thread(server.wait_until_quiet)
    after = await ask_alone(server.address, probes, counts)
    metrics = await asyncio.to_thread(server.get, "/metrics")
    digests = [digest_of(before), digest_of(after)]
    return measured(counts, samples, probe, metrics) | {"digests": digests}


async def _until_stopped(tasks: set[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
    """Let tasks run for some seconds, or until Ctrl-C or one of them ends; returns that one."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    waiting = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait(
        {waiting, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (waiting, *tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop.remove_signal_handler(signal.SIGINT)
    return tasks & done


async def _tell_all(
    counts: Counts, probe: Tally, samples: Sequence[Sample], minutes: float
) -> None:
    """Print a line a minute."""
    minute = 0
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        minute += 1
        live_ms = 1000 * percentile(sorted(probe.live_seconds), 0.99)
        _tell(
            f"minute {minute} of {minutes:g}: {counts.of(RIGHT):,} right, "
            f"{counts.of(*FAULTS):,} faults, {counts.of(REFUSED):,} refused, "
            f"{counts.of(LATE):,} late; {samples[-1].resident_bytes / 1e6:,.0f} MB, "
            f"/health/live p99 {live_ms:.0f} ms"
        )


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
