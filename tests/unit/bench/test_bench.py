"""The benchmarks' own arithmetic: fair batches, ratios within a round, the load tool's requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engine.engine import Engine
from deltas import Backbone, Store, TokenizedRow, load_backbone, tokenize_texts, zoo_path
from deltas.encoder import cpu, row_attention
from deltas.hardware import multiplies_int8_exactly
from tests.bench import over_http, precision, scale, shares, trainers, training
from tests.bench.serving import RATIOS, cut, summarise
from tests.bench.workload import Workload
from training.data.rows import Rows
from training.data.tasks import Task
from training.run.task_model import Split


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


def a_round(engine: float, one: float, lists: float) -> dict[str, Any]:
    """A round of bench-http, in rows/s; a row takes 10 ms, 12 over HTTP."""
    rates = {"engine alone": engine, "one row, 64 connections": one}
    rates |= {"lists of 32, 8 connections": lists, "one row, one connection": 80.0}
    found: dict[str, Any] = {
        name: {"rows_per_s": rate, "p50_ms": 12.0} for name, rate in rates.items()
    }
    found["engine alone"]["p50_ms"] = 10.0
    found["fan-out to nine"] = {"rows_per_s": 30.0, "p50_ms": 27.0}
    found["nine requests"] = {"rows_per_s": 90.0, "p50_ms": 10.0}
    found["one of nine, evenly"] = {"every_ms": [4000 / engine] * 9}
    found["one of nine, busily"] = {"every_ms": [7000 / engine] * 9}
    return found


def test_http_and_the_engine_are_compared_within_a_round() -> None:
    """The second round's machine is half as fast, the third was disturbed while HTTP ran.

    The slowest hundredth is that of all rounds' answers together.
    """
    rounds = [a_round(200, 140, 180), a_round(100, 70, 90), a_round(200, 40, 60)]
    assert over_http.ratios(rounds) == {
        "http_one_row_vs_engine": 0.7,
        "http_list32_vs_engine": 0.9,
        "idle_overhead_ms": 2.0,
        "fanout9_vs_requests": 0.3,
        "fair_p99_ratio": 1.75,
    }
    answers = [{"rows_per_s": 3.0, "statuses": {"200": 2}, "live_max_ms": 1.5}] * 2
    answers.append({"rows_per_s": 9.0, "statuses": {"200": 1, "429": 4}, "live_max_ms": 7.0})
    summed = {"rows_per_s": 3.0, "statuses": {"200": 5, "429": 4}, "live_max_ms": 1.5}
    assert over_http.median_of(answers) == summed


def test_changes_are_flips_of_labels_and_distances_of_values() -> None:
    before, after = np.array([0, 2, 1, 1]), np.array([0, 1, 1, 1])
    assert precision.changes("single_label", before, after) == {"flips": 0.25}
    before, after = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    expected = {"mean_change": 0.5, "largest_change": 1.0}
    assert precision.changes("regression", before, after) == expected


@pytest.fixture(scope="module")
def engines(tiny_backbone: Backbone, tiny_deltas: Path) -> dict[str, Engine]:
    """One of each precision, for all toy deltas."""
    if not multiplies_int8_exactly():
        pytest.skip("this CPU's products of whole numbers are not exact")
    return precision.make_engines(tiny_backbone, tiny_deltas)


def test_a_head_moves_in_int8_and_sparse_matrices_do_not(engines: dict[str, Engine]) -> None:
    """Rows of deltas with values of their own in matrices are answered as "auto" would."""
    texts: list[tuple[str, ...]] = [("good", "film"), ("bad", "not bad"), ("3", "the"), ("a", "b")]
    rows = Rows(texts, [0.0, 1.0, 2.0, 3.0])
    task = Task("toyreg", "regression", (), ("first", "second"), ("pearson",))
    store = engines["fp32"].store
    for strategy, moves in (("head", True), ("random:0.05", False)):
        found = precision.compare(engines, store.resolve("toyreg", strategy), task, rows, 16)
        assert (found["task"], found["strategy"]) == ("toyreg", strategy)
        assert (found["metric"], found["rows"]) == ("pearson", 4)
        assert found["bf16"]["largest_change"] > 0
        plain = (0.0, found["bf16"]["largest_change"])  # in float32, in bfloat16
        assert (found["int8"]["largest_change"] not in plain) == moves
        assert found["int8"]["mean_change"] <= found["int8"]["largest_change"] < 0.5


def test_bodies_say_what_they_ask_of_the_engine(tmp_path: Path) -> None:
    """Each target of a fan-out computes the row anew."""
    sizes = [*range(5, 45)]
    files = over_http.write_bodies(a_workload(sizes), sizes, tmp_path)
    read = {
        kind: [json.loads(line) for line in path.read_text().splitlines()]
        for kind, path in files.items()
    }
    assert [body["tokens"] for body in read["one"]] == sizes
    assert [(body["rows"], body["tokens"]) for body in read["lists"]] == [(32, sum(sizes[:32]))]
    assert [body["tokens"] for body in read["fan-out"]] == [9 * size for size in sizes]
    assert sum(body["tokens"] for body in read["nine"]) == 9 * sum(sizes)
    assert [body["tokens"] for body in read["busily"]] == sizes


@pytest.mark.parametrize("name", ["serving", "precision", "scale", "http", "training"])
def test_committed_measurements_have_what_the_readme_shows(name: str) -> None:
    path = Path(__file__).parents[3] / "docs" / "performance" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no measurement of {name} is committed")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["ratios"]
    assert {"cpu", "threads", "torch"} <= set(report["machine"])
    assert report["data"].startswith("GLUE ")
    for system in report["systems"].values() if name != "training" else ():
        assert system["rows_per_s"] > 0
        assert system["tokens_per_s"] > 0
    if name == "precision":
        assert set(report["ratios"]) >= {*precision.SPEEDS, *precision.WANTED}
        assert len(report["deltas"]) == len(Store([zoo_path()]).records)
        assert report["rows_a_dev_set"] == "all"
    if name == "serving":
        # The first is for GPUs; means came after the committed measurement.
        others = {"mixed_vs_traffic", "means_vs_mixed", "some_means_vs_mixed"}
        assert set(report["ratios"]) | others == set(RATIOS)


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


@pytest.mark.parametrize("system", ["ours bitfit", "plain bitfit"])
def test_trainers_learn(system: str) -> None:
    """Check that the timed work is training: the loss of its rows falls."""
    backbone = load_backbone()
    rows = tokenize_texts(backbone.tokenizer, 16, [("good film",), ("bad film",)] * 16)
    split = Split(rows, torch.tensor([1, 0] * 16))
    trainer = trainers.make(system, split, backbone, "fp32")
    before = trainer.loss()
    trainer.run(8)
    assert trainer.loss() < before


def test_a_pass_is_divided_among_products_attention_and_what_is_between(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((cpu, "apply_epilogue"), (row_attention, "attend")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    shares.mark_kernels()
    engine = engines["fp32"]
    rows = engine.tokenize(engine.store.resolve("toy2", "bitfit"), [("good film",)] * 20)
    found = shares.shares(engine, [rows[:10], rows[10:]])
    assert all(found[part] > 0 for part in ("whole pass", "products", "attention", "epilogues"))
    assert shares.table({"fp32": found})[0].startswith("fp32: whole pass ")
