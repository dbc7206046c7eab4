"""The benchmarks' own arithmetic: fair batches, ratios within a round, the load tool's requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltas import TokenizedRow, load_backbone, tokenize_texts
from tests.bench import scale, trainers, training
from tests.bench.load import encode_requests
from tests.bench.serving import RATIOS, cut, summarise
from tests.bench.workload import Workload
from training.trainee import Split


def row(num_tokens: int) -> TokenizedRow:
    """A row of so many tokens."""
    return TokenizedRow([7] * num_tokens, [0] * num_tokens, truncated=False)


def a_workload(sizes: list[int]) -> Workload:
    """One row of each size, all of one task."""
    return Workload([("a",)] * len(sizes), [row(size) for size in sizes], [0] * len(sizes), "test")


def test_batches_keep_the_order_and_the_budget() -> None:
    rows: list[Any] = [row(size) for size in (5, 4, 3, 9, 1, 1, 1, 12, 2)]
    batches = cut(rows, 10)
    assert [item for batch in batches for item in batch] == rows
    sizes = [[item.num_tokens for item in batch] for batch in batches]
    assert sizes == [[5, 4], [3], [9, 1], [1, 1], [12], [2]]


def test_ratios_compare_within_a_round() -> None:
    """A round in which the machine is three times slower moves both sides, and no ratio."""
    seconds = {"mixed bitfit": [1.0, 3.0, 1.0], "single bitfit": [2.0, 6.0, 2.0]}
    found = summarise(seconds, a_workload([2] * 6))
    assert found["ratios"] == {"mixed_vs_single": 2.0}
    assert found["systems"]["mixed bitfit"] == {"rows_per_s": 6.0, "tokens_per_s": 12}


def test_the_cliff_is_the_speed_with_few_slots_over_that_with_all() -> None:
    """Half the speed is 0.5; more registered tasks that take longer are below 1."""
    seconds = {
        "9 tasks, uniform": [1.0, 3.0],
        "9 tasks, zipf": [1.0, 3.0],
        "90 tasks, uniform": [1.25, 3.75],
        "90 tasks, zipf": [1.0, 3.0],
        "cliff, slots for all": [1.0, 3.0],
        "cliff, slots for a quarter": [2.0, 6.0],
    }
    memory = {
        "90 tasks": {"resident_bytes": 300, "backbone_resident_bytes": 100, "delta_bytes": 250},
        "90 tasks, 64 slots": {
            "resident_bytes": 150,
            "backbone_resident_bytes": 100,
            "delta_bytes": 250,
        },
    }
    assert scale.summarise(seconds, memory, {9: 2.0, 90: 3.0}, [9, 90]) == {
        "tasks_90_vs_9": 0.8,
        "tasks_90_vs_9_zipf": 1.0,
        "register_ms": 3.0,
        "register_vs_first": 1.5,
        "memory_vs_deltas": 0.8,
        "memory_64_slots_vs_deltas": 0.2,
        "cliff_4x": 0.5,
    }


def test_requests_are_what_a_server_reads(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    path.write_text(json.dumps({"path": "/predict/a", "rows": 1, "body": {"inputs": "é"}}) + "\n")
    ((request, rows),) = encode_requests(path, "host")
    head, _, body = request.partition(b"\r\n\r\n")
    assert rows == 1
    assert json.loads(body) == {"inputs": "é"}
    assert f"Content-Length: {len(body)}".encode() in head
    assert head.startswith(b"POST /predict/a HTTP/1.1\r\n")


@pytest.mark.parametrize("name", ["serving", "scale", "http", "training"])
def test_committed_measurements_have_what_the_readme_shows(name: str) -> None:
    path = Path(__file__).parents[2] / "docs" / "performance" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no measurement of {name} is committed")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["ratios"]
    assert {"cpu", "threads", "torch"} <= set(report["machine"])
    assert report["data"].startswith("GLUE ")
    if name == "serving":
        only_float32 = {"mixed_vs_onnx"} if report["precision"] != "fp32" else set()
        assert set(report["ratios"]) == set(RATIOS) - only_float32


def test_training_ratios_are_of_medians_and_memory() -> None:
    """Each system's rate, memory and bytes; a time is a rate upside down."""
    systems = {
        name: {"rows_per_s": 10.0, "peak_mb": 100, "optimizer_bytes": 1000}
        for name in (*training.STEPS, *training.RUNS)
    }
    systems["ours bitfit"] = {"rows_per_s": 30.0, "peak_mb": 50, "optimizer_bytes": 10}
    systems["ours random:0.001"] = {"rows_per_s": 20.0, "peak_mb": 60, "optimizer_bytes": 5}
    found = training.ratios(systems, "rte")
    assert found["bitfit_vs_plain_rte"] == 3.0
    assert found["random_time_vs_bitfit_rte"] == 1.5
    assert found["bitfit_memory_vs_full_rte"] == 0.5
    assert found["random_state_vs_full_rte"] == 0.005


@pytest.mark.parametrize("system", ["ours bitfit", "ours top:2", "plain bitfit"])
def test_trainers_learn(system: str) -> None:
    """What is timed is training: the loss of its rows falls."""
    backbone = load_backbone()
    rows = tokenize_texts(backbone.tokenizer, 16, [("good film",), ("bad film",)] * 16)
    split = Split(rows, torch.tensor([1, 0] * 16))
    trainer = trainers.make(system, split, backbone, "fp32")
    before = trainer.loss()
    trainer.run(8)
    assert trainer.loss() < before
