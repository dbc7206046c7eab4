"""Makes the report of a soak: its numbers, its faults, and the table of docs/performance.md."""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.load import Tally, percentile
from tests.bench.server_process import SAMPLE_EVERY_S, Sample, slope_per_hour
from tests.bench.soak.admin import CHANGES, NONE
from tests.bench.soak.calls import GONE, LATE, NOT_READY, REFUSED, RIGHT, UNANNOUNCED, WRONG
from tests.bench.soak.clients import LEFT, LOST, Counts

LONG_MINUTES = 30.0  # a soak of this length judges the memory
MOST_GROWTH = 1.0  # % an hour
_OUTCOMES = (RIGHT, REFUSED, LATE, NOT_READY, GONE, LEFT, WRONG, UNANNOUNCED, LOST)
_SAMPLES_A_MINUTE = round(60 / SAMPLE_EVERY_S)
_SIZES = ("clients", "deltas", "slots")
_COUNTED = (
    "deltabert_slot_evictions_total",
    'deltabert_dropped_requests_total{reason="cancelled"}',
)


def digest_of(bodies: Sequence[bytes]) -> str:
    """Return the digest of answers, which changes with any bit of a weight that they pass."""
    return hashlib.sha256(b"\0".join(bodies)).hexdigest()[:16]


def measured(
    counts: Counts, samples: Sequence[Sample], probe: Tally, metrics: str
) -> dict[str, Any]:
    """Return the numbers of a soak.

    Args:
        counts: the answers.
        samples: states of the process, at least one.
        probe: latencies of /health/live.
        metrics: the server's own metrics at the end.
    """
    kinds = sorted({kind for kind, _ in counts.outcomes})
    memory = [sample.resident_bytes / 1e6 for sample in samples]
    seconds, live = sorted(counts.seconds) or [0.0], sorted(probe.live_seconds) or [0.0]
    return {
        "minutes": round(samples[-1].seconds / 60, 1),
        "answers": {
            kind: {
                outcome: counts.outcomes[kind, outcome]
                for outcome in _OUTCOMES
                if counts.outcomes[kind, outcome]
            }
            for kind in kinds
        },
        "compared": counts.compared,
        **{outcome: counts.of(outcome) for outcome in _OUTCOMES},
        "memory_slope": round(slope_per_hour([sample[:2] for sample in samples]), 2),
        "memory_mb": [round(value) for value in (memory[0], max(memory), memory[-1])],
        "memory_mb_each_minute": [round(value) for value in memory[::_SAMPLES_A_MINUTE]],
        "threads": [samples[0].threads, max(sample.threads for sample in samples)],
        "descriptors": [samples[0].descriptors, max(sample.descriptors for sample in samples)],
        "row_ms": _ends(seconds),
        "live_ms": _ends(live),
        "server": {name: _value(metrics, name) for name in _COUNTED},
        "faults": counts.faults,
    }


def _ends(in_order: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum of increasing seconds, in milliseconds."""
    found = {"p50": statistics.median(in_order), "p99": percentile(in_order, 0.99)}
    found["most"] = in_order[-1]
    return {name: round(1000 * value, 1) for name, value in found.items()}


def _value(metrics: str, name: str) -> int:
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    return int(float(found[1])) if found else 0


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Return the reasons for which a soak has failed; none if it has passed."""
    reasons = [
        f"{report[outcome]} answers are {outcome}"
        for outcome in (WRONG, UNANNOUNCED, LOST)
        if report[outcome]
    ]
    if not report["compared"]:
        reasons.append("no answer was compared")
    if report.get("changes", NONE) != NONE and not changes_of(report):
        reasons.append("no change was acknowledged")
    if len(set(report["digests"])) != 1:
        reasons.append(f"the digest of the probes has changed: {' -> '.join(report['digests'])}")
    if report["minutes"] >= LONG_MINUTES and report["memory_slope"] > MOST_GROWTH:
        reasons.append(
            f"memory grows by {report['memory_slope']} % an hour, at most {MOST_GROWTH:g} % allowed"
        )
    return reasons


def changes_of(report: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of acknowledged changes of each kind."""
    found = {kind: report["answers"].get(kind, {}).get(RIGHT, 0) for kind in CHANGES}
    return {kind: count for kind, count in found.items() if count}


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table: quantity, measured, allowed."""
    live, row = report["live_ms"], report["row_ms"]
    before, after = report["digests"]
    is_long = report["minutes"] >= LONG_MINUTES
    counted = report["server"]
    evictions, cancelled = (f"{counted[name]:,}" for name in _COUNTED)
    growth = f"at most {MOST_GROWTH:g}" if is_long else f"judged from {LONG_MINUTES:g} minutes on"
    rows = [
        ["duration, minutes", f"{report['minutes']:g}", ""],
        ["clients, deltas, slots", listed([report[name] for name in _SIZES]), ""],
        *_rows_of_changes(report),
        ["answers compared with those computed alone", f"{report['compared']:,}", "at least 1"],
        ["wrong answers", f"{report[WRONG]:,}", "0"],
        ["5xx without announcement", f"{report[UNANNOUNCED]:,}", "0"],
        ["requests without an answer", f"{report[LOST]:,}", "0"],
        ["announced refusals (429, 503 with `Retry-After`)", f"{report[REFUSED]:,}", ""],
        ["504 of requests with a deadline of their own", f"{report[LATE]:,}", ""],
        ["503 of `/health/ready`: a prediction took over 5 s", f"{report[NOT_READY]:,}", ""],
        ["requests that their clients left", f"{report[LEFT]:,}", ""],
        ["of these, cancelled while they waited", cancelled, ""],
        ["deltas evicted from their slots", evictions, ""],
        ["memory at start, most, at the end, MB", listed(report["memory_mb"]), ""],
        ["growth after ten minutes, % an hour", f"{report['memory_slope']:g}", growth],
        ["threads at start, most", listed(report["threads"]), ""],
        ["descriptors at start, most", listed(report["descriptors"]), ""],
        ["one row: p50, p99, ms", f"{row['p50']:g}, {row['p99']:g}", ""],
        ["`/health/live`: p50, p99, ms", f"{live['p50']:g}, {live['p99']:g}", ""],
        ["digest of the probes before, after", f"`{before}`, `{after}`", "equal"],
    ]
    return [["quantity", "measured", "allowed"], *rows]


def _rows_of_changes(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a soak whose deltas changed; none of another one."""
    changes = changes_of(report)
    if not changes:
        return []
    answers = report["answers"]
    found = [answers.get(kind, {}) for kind in ("changing row", "changing fan-out")]
    right, gone = (sum(each.get(outcome, 0) for each in found) for outcome in (RIGHT, GONE))
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in changes.items())
    return [
        ["deltas that change meanwhile, beside the others", f"{report['changing']}", ""],
        ["changes that were acknowledged", kinds, "at least 1"],
        ["answers of changing deltas, each equal to its version's", f"{right:,}", ""],
        ["404 of deltas and versions that were removed", f"{gone:,}", ""],
    ]


def listed(values: Sequence[int]) -> str:
    """Write numbers in one cell of the table."""
    return ", ".join(f"{value:,}" for value in values)
