"""Shows that a soak fails when it should: planted faults of answers, statuses, memory, digest."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.pipeline import RowLogits
from tests.bench.load import Response, Tally
from tests.bench.server_process import Sample, slope_per_hour
from tests.bench.soak import __main__ as soak
from tests.bench.soak.calls import (
    LATE,
    NOT_READY,
    REFUSED,
    RIGHT,
    UNANNOUNCED,
    WRONG,
    Call,
    difference,
    judge_answer,
)
from tests.bench.soak.clients import Counts
from tests.bench.soak.report import changes_of, measured, table, verdict
from tests.bench.soak.scenario import Scenario, compute_alone

PREDICTION = {"label": "a", "decision": None, "score": 0.75, "scores": {"a": 0.75, "b": 0.25}}
ALONE = {"task": "t", "version": "1", "predictions": [PREDICTION, {"value": 41.5}]}
ANNOUNCED = b"\r\nretry-after: 1\r\n"


def changed(*path: str | int, to: Any) -> Any:
    """Return the answer with one value changed."""
    answer: Any = copy.deepcopy(ALONE)
    place = answer
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return answer


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        (changed("version", to="2"), "answer.version"),
        (changed("predictions", 0, "label", to="b"), "answer.predictions[0].label"),
        (changed("predictions", 0, "decision", to="a"), "answer.predictions[0].decision"),
        (changed("predictions", 0, "scores", "b", to=0.25003), "answer.predictions[0].scores.b"),
        (changed("predictions", 0, "scores", to={"a": 0.75}), "answer.predictions[0].scores"),
        (changed("predictions", 1, "value", to=41.501), "answer.predictions[1].value"),
        (changed("predictions", 1, "value", to=float("nan")), "answer.predictions[1].value"),
        (changed("predictions", to=ALONE["predictions"][:1]), "answer.predictions"),
        (changed("predictions", to=ALONE["predictions"][::-1]), "answer.predictions[0]"),
        ({**ALONE, "more": 1}, "answer"),
        ([ALONE], "answer"),
    ],
)
def test_a_planted_wrong_answer_is_found(answer: Any, place: str) -> None:
    found = difference(answer, ALONE)
    assert found.startswith(f"{place} is ")


def test_rounding_is_no_fault() -> None:
    near = changed("predictions", 0, "scores", "b", to=0.250009)
    assert difference(near, ALONE) == ""
    assert difference(changed("predictions", 1, "value", to=41.5003), ALONE) == ""


@pytest.mark.parametrize(
    ("call", "answer", "outcome"),
    [
        (Call("row", b"", expected=ALONE), (200, b"", ALONE), RIGHT),
        (Call("row", b"", expected=ALONE), (200, b"", changed("task", to="s")), WRONG),
        (Call("row", b"", expected=ALONE), (200, b"", "not an answer"), WRONG),
        (Call("row", b"", expected=ALONE), (422, b"", {}), WRONG),
        (Call("row", b"", expected=ALONE), (429, ANNOUNCED, {}), REFUSED),
        (Call("row", b"", expected=ALONE), (429, b"", {}), WRONG),
        (Call("row", b"", expected=ALONE), (503, ANNOUNCED, {}), REFUSED),
        (Call("row", b"", expected=ALONE), (503, b"", {}), UNANNOUNCED),
        (Call("row", b"", expected=ALONE), (500, ANNOUNCED, {}), UNANNOUNCED),
        (Call("row", b"", expected=ALONE), (504, b"", {}), UNANNOUNCED),
        (Call("row", b"", has_deadline=True), (504, b"", {}), LATE),
        (Call("readiness", b"", is_readiness=True), (503, b"", {}), NOT_READY),
        (Call("bad", b"", 404, code="a"), (404, b"", {"error": {"code": "a"}}), RIGHT),
        (Call("bad", b"", 404, code="a"), (404, b"", {"error": {"code": "b"}}), WRONG),
        (Call("bad", b"", 404, code="a"), (200, b"", {}), WRONG),
    ],
)
def test_each_status_has_an_outcome(
    call: Call, answer: tuple[int, bytes, Any], outcome: str
) -> None:
    status, headers, body = answer
    found, fault = judge_answer(call, Response(status, headers, json.dumps(body).encode()))
    assert found == outcome
    assert bool(fault) == (outcome in (WRONG, UNANNOUNCED))


def test_an_answer_that_is_no_json_is_wrong() -> None:
    found, fault = judge_answer(Call("row", b"", expected=ALONE), Response(200, b"", b'{"task'))
    assert (found, fault) == (WRONG, "row: no JSON: b'{\"task'")


def samples_of(minutes: int, megabytes: Sequence[float]) -> list[Sample]:
    """Return a sample for each value, evenly over some minutes."""
    step = 60 * minutes / (len(megabytes) - 1)
    return [Sample(n * step, int(value * 1e6), 4, 20) for n, value in enumerate(megabytes)]


def test_the_slope_counts_from_the_tenth_minute_on() -> None:
    grows_at_first = [500 + 10 * min(minute, 10) for minute in range(61)]
    grown = slope_per_hour([sample[:2] for sample in samples_of(60, grows_at_first)])
    assert grown == pytest.approx(0, abs=1e-9)
    leaks = [600 + minute / 10 for minute in range(61)]  # 6 MB an hour, 603.5 MB on average
    leaked = slope_per_hour([sample[:2] for sample in samples_of(60, leaks)])
    assert leaked == pytest.approx(100 * 6 / 603.5)


def report_of(minutes: int = 60, grows_mb: float = 0.0, **changes: Any) -> dict[str, Any]:
    """Return the report of a soak with one right answer."""
    counts = Counts()
    counts.note(Call("row", b"", expected=ALONE), RIGHT)
    samples = samples_of(minutes, [600 + grows_mb * minute / 60 for minute in range(minutes + 1)])
    sizes = {"clients": 2, "deltas": 3, "slots": 1, "digests": ["a", "a"]}
    return measured(counts, samples, Tally(live_seconds=[0.001]), "") | sizes | changes


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({WRONG: 1}, "1 answers are wrong"),
        ({UNANNOUNCED: 2}, "2 answers are unannounced 5xx"),
        ({"lost": 3}, "3 answers are lost"),
        ({"compared": 0}, "no answer was compared"),
        ({"changes": "all", "changing": 1}, "no change was acknowledged"),
        ({"digests": ["a", "b"]}, "the digest of the probes has changed: a -> b"),
        ({"grows_mb": 7}, "memory grows by 1.16 % an hour, at most 1 % allowed"),
    ],
)
def test_each_planted_fault_fails_the_soak(planted: dict[str, Any], reason: str) -> None:
    assert verdict(report_of()) == []
    assert verdict(report_of(**planted)) == [reason]


def test_a_short_soak_does_not_judge_the_memory() -> None:
    report = report_of(minutes=20, grows_mb=700)
    assert verdict(report) == []
    assert ["growth after ten minutes, % an hour", "92.41", "judged from 30 minutes on"] in table(
        report
    )


SHORT = ("--clients", "16", "--slots", "5", "--texts", "6")


@pytest.mark.slow
def test_a_short_soak_passes_and_ctrl_c_ends_it(tiny_backbone_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    command = [sys.executable, "-m", "tests.bench.soak", "--backbone", str(tiny_backbone_dir)]
    process = subprocess.Popen(
        [*command, "--json", str(path), *SHORT],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"DELTABERT_WARM_UP": "false", "DELTABERT_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "16 clients for 30 minutes" in line:
            break
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, said + errors
    assert said.endswith("\npassed\n")
    assert re.search(r"^\| wrong answers \| 0 \| 0 \|$", said, re.MULTILINE)
    report = json.loads(path.read_text(encoding="utf-8"))
    kinds = {"row", "list", "fan-out", "deadline", "bad request", "page"}
    kinds |= {"changing row", "changing fan-out", "publish"}
    assert kinds <= report["answers"].keys()
    assert report["compared"] > 100
    assert changes_of(report)["publish"] > 0
    assert min(report["server"].values()) > 0, "no delta was evicted, or no request cancelled"
    assert report["left by the client"] > 0


@pytest.mark.slow
def test_one_wrong_answer_fails_a_soak(
    tiny_backbone_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers of one delta are compared with others, by a little more than rounding."""

    def planted(*arguments: Any) -> Scenario:
        scenario = compute_alone(*arguments)
        singles, pairs = scenario.by_fields
        wrong = [
            RowLogits([z * 1.001 for z in each.logits], each.truncated) for each in pairs[0].logits
        ]
        return replace(scenario, by_fields=(singles, [replace(pairs[0], logits=wrong), *pairs[1:]]))

    monkeypatch.setattr(soak, "compute_alone", planted)
    monkeypatch.setenv("DELTABERT_WARM_UP", "false")
    monkeypatch.setenv("DELTABERT_THREADS", "1")
    arguments = ["--backbone", str(tiny_backbone_dir), "--minutes", "0.05", *SHORT]
    assert soak.main(arguments) == 1
    assert re.search(r"^FAILED: \d+ answers are wrong$", capsys.readouterr().out, re.MULTILINE)
