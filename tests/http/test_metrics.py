"""The metrics of a started server: what they count, and that many deltas do not grow them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.errors import CODES
from app.http.telemetry.metrics import Metrics
from app.pipeline import STAGES
from deltas.hardware import multiplies_int8_exactly

Start = Callable[..., TestClient]
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def samples(client: TestClient) -> Iterator[Sample]:
    """Yield all that `/metrics` answers; the parser raises where the text is not in the format."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        yield from family.samples


def values(client: TestClient, name: str, *labels: str) -> dict[Any, float]:
    """Return the values of a metric by the values of its labels; of one label, by that value."""
    found = {
        tuple(sample.labels.get(label, "") for label in labels): sample.value
        for sample in samples(client)
        if sample.name == name
    }
    return {key[0] if len(key) == 1 else key: value for key, value in found.items()}


def predict(client: TestClient, *tasks: str, rows: int = 1) -> None:
    body = {"inputs": ["a good film"] * rows, "targets": [{"task": task} for task in tasks]}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of each metric in the table of the reference."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(deltabert_\w+)` \| (\w+) \| ([^|]*)\|", text, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_reference_has_every_metric_with_its_type_and_labels(start: Start) -> None:
    client = start(precision="int8" if multiplies_int8_exactly() else "fp32")
    predict(client, "toy2", rows=3)
    families = [
        family
        for family in text_string_to_metric_families(client.get("/metrics").text)
        if not family.name.startswith("process_") and not family.name.endswith("_created")
    ]
    told = documented()
    assert {
        family.name + "_total" * (family.type == "counter"): family.type for family in families
    } == {name: kind for name, (kind, _) in told.items()}
    for family in families:
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        if family.samples and family.name != "deltabert_build_info":
            assert labels == told[family.name + "_total" * (family.type == "counter")][1]


def test_rows_and_tokens_are_counted_by_delta(start: Start) -> None:
    client = start()
    predict(client, "toy2", "toymulti", rows=2)
    predict(client, "toy2")
    rows = values(client, "deltabert_rows_total", "task", "strategy")
    assert rows == {("toy2", "bitfit"): 3, ("toymulti", "bitfit"): 2, ("other", ""): 0}
    tokens = values(client, "deltabert_tokens_total", "task", "strategy")
    assert tokens.keys() == rows.keys()
    assert tokens["toy2", "bitfit"] / 3 == tokens["toymulti", "bitfit"] / 2 >= 5
    ran = values(client, "deltabert_batch_tokens_sum")
    assert sum(tokens.values()) == ran[()]


def test_deltas_beyond_the_limit_are_counted_together(start: Start) -> None:
    client = start(max_delta_series=2)
    predict(client, "toy2", rows=5)
    predict(client, "toymulti", rows=4)
    client.get("/metrics")
    body = {
        "inputs": {"text": "a", "text_pair": "b"},
        "targets": [{"task": "toy3"}, {"task": "toyreg"}],
    }
    assert client.post("/predict", json=body).status_code == 200
    rows = values(client, "deltabert_rows_total", "task", "strategy")
    assert rows == {("toy2", "bitfit"): 5, ("toymulti", "bitfit"): 4, ("other", ""): 2}
    versions = values(client, "deltabert_delta_info", "task", "version")
    assert {task for task, _ in versions} == {"toy2", "toymulti"}
    for task, version in versions:
        assert client.get(f"/deltas/{task}/bitfit").json()["version"] == version


def test_shadows_beyond_the_limit_are_counted_together() -> None:
    metrics = Metrics(max_deltas=1)
    for task in ("a", "b", "c", "a"):
        metrics.on_shadow(task, "head", "same", 2)
    text = metrics.render().decode()
    assert 'deltabert_shadow_rows_total{result="same",strategy="head",task="a"} 4.0' in text
    assert 'deltabert_shadow_rows_total{result="same",strategy="",task="other"} 4.0' in text
    assert text.count("deltabert_shadow_rows_total{") == 2


def test_errors_are_counted_by_code(start: Start) -> None:
    client = start(max_body_bytes=2048)
    assert values(client, "deltabert_errors_total", "code") == dict.fromkeys(CODES, 0)
    client.post("/predict/nope", json={"inputs": "x"})
    client.post("/predict/toy2", json={"inputs": [1, 2]})
    client.post("/predict/toy2", content=b"{", headers={"Content-Type": "application/json"})
    client.post("/predict/toy2", json={"inputs": "x" * 4096})
    client.get("/nope")
    client.put("/tasks")
    found = values(client, "deltabert_errors_total", "code")
    assert {code for code, count in found.items() if count} == {
        "not_found",
        "invalid_input",
        "malformed_json",
        "too_large",
        "unknown_path",
        "method_not_allowed",
    }
    assert set(found.values()) == {0, 1}


def test_a_refusal_without_a_route_has_its_code(start: Start, gate: Any) -> None:
    client = start(max_queue_rows=1, max_rows_per_request=1)
    gate.close()
    with ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(client.post, "/predict/toy2", json={"inputs": "x"}) for _ in range(8)
        ]
        for _ in range(1000):
            if values(client, "deltabert_errors_total", "code")["overloaded"]:
                break
            time.sleep(0.01)
        gate.is_open.set()
    refused = sum(answer.result().status_code == 429 for answer in answers)
    assert values(client, "deltabert_errors_total", "code")["overloaded"] == refused > 0


def test_each_stage_of_a_prediction_is_timed(start: Start) -> None:
    client = start()
    predict(client, "toy2")
    counts = values(client, "deltabert_stage_seconds_count", "stage")
    assert counts == {stage: float(stage != "load") for stage in STAGES}
    seconds = values(client, "deltabert_stage_seconds_sum", "stage")
    total = values(client, "deltabert_request_seconds_sum", "route")["/predict"]
    assert 0 < sum(seconds.values()) <= total
    assert client.post("/predict/toy2", json={"inputs": [1]}).status_code == 422
    assert values(client, "deltabert_stage_seconds_count", "stage")["write"] == 1


def test_loads_are_timed(start: Start) -> None:
    client = start(max_slots=1)
    for task in ("toy2", "toymulti", "toy2"):
        predict(client, task)
    assert values(client, "deltabert_stage_seconds_count", "stage")["load"] >= 2


def test_a_batch_tells_how_full_it_was(start: Start) -> None:
    client = start(max_batch_tokens=64)
    predict(client, "toy2", rows=30)
    fill = values(client, "deltabert_batch_fill_ratio_sum")[()]
    tokens = values(client, "deltabert_batch_tokens_sum")[()]
    assert math.isclose(fill, tokens / 64)


def test_the_age_of_the_oldest_row(start: Start, gate: Any, wait_for_queue: Any) -> None:
    client = start()
    assert values(client, "deltabert_queue_oldest_seconds")[()] == 0
    gate.close()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predict, client, "toy2")
        assert gate.entered.wait(10)
        second = pool.submit(predict, client, "toy2")
        wait_for_queue(client, 1)
        time.sleep(0.2)
        assert values(client, "deltabert_queue_oldest_seconds")[()] >= 0.2
        gate.is_open.set()
        first.result()
        second.result()
    assert values(client, "deltabert_queue_oldest_seconds")[()] == 0


def test_readiness_is_that_of_the_last_check(
    start: Start, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.readiness._KEEP_S", 0.0)
    client = start(ready_timeout_s=0.1)
    assert math.isnan(values(client, "deltabert_ready")[()])
    assert client.get("/health/ready").status_code == 200
    assert values(client, "deltabert_ready")[()] == 1
    gate.close()
    assert client.get("/health/ready").status_code == 503
    assert values(client, "deltabert_ready")[()] == 0
    monkeypatch.setattr("app.http.readiness._OUTDATED_S", 0.0)
    assert math.isnan(values(client, "deltabert_ready")[()]), "an old failure is no alarm"
    gate.is_open.set()


def test_files_that_are_not_served_are_counted(
    start: Start, tiny_deltas: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no delta")
    client = start(deltas=(tiny_deltas, tmp_path))
    assert values(client, "deltabert_rejected_files")[()] == 1
    assert values(client, "deltabert_deltas")[()] == values(client, "deltabert_slots")[()] == 25


def test_tasks_of_one_request_meet_in_a_batch(start: Start) -> None:
    client = start()
    predict(client, "toy2", "toymulti")
    predict(client, "toy2")
    found = values(client, "deltabert_shared_batches", "task", "other")
    assert found == {("toy2", "toymulti"): 1.0}
    assert [
        one.value for one in samples(client) if one.name == "deltabert_shared_batches_seen"
    ] == [2.0]
