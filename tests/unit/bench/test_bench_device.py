"""The serving benchmark's device: which systems it has there, where they compute, and their clock.

No GPU is needed: systems are stand-ins that say what they were given, or lie on a device without
values.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltas import DTYPES, Backbone, TokenizedRow
from tests.bench import peers, serving
from tests.bench.peers import Peft, Transformers, answers, padded
from tests.bench.report import machine
from tests.bench.workload import Workload, noisy_delta, task_spec

OURS = [
    "mixed bitfit",
    "mixed bitfit, int8",
    "single bitfit",
    "mixed layernorm",
    "single layernorm",
    "mixed head",
    "single head",
    "mixed random:0.001",
    "single random:0.001",
    "mixed, one in four top:2",
]
TORCH_PEERS = [
    "transformers, one row at a time",
    "transformers, windows of 32",
    "transformers, sorted offline",
    "PEFT LoRA, mixed batches of 32",
]
ONNX = ["ONNX Runtime float32, windows of 32", "ONNX Runtime int8, windows of 32"]
GEMMS = ["all GEMMs of 6 layers", "the GEMMs that we run"]
TRAFFIC = "the GEMMs that we run, and memory traffic"
INT8_RATIOS = {name for name in serving.RATIOS if name.startswith("int8")}


@pytest.fixture
def workload() -> Workload:
    """Rows of three and four tokens, of two tasks."""
    rows = [TokenizedRow([7] * size, [0] * size, truncated=False) for size in (3, 4)]
    return Workload([("a",)] * 2, rows, [0, 1], "test")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, Any]]:
    """Nothing is computed; what was made on which device, with what of interest, is counted."""
    made: Counter[tuple[str, Any]] = Counter()

    def engine(*_: Any, device: str, precision: str) -> Any:
        made["engine", (device, precision)] += 1
        return SimpleNamespace(predict=lambda batch: None)

    def peer(name: str) -> Callable[..., Any]:
        def make(workload: Workload, many: object, dtype: torch.dtype, device: str) -> Any:
            made[name, (device, dtype)] += 1
            names = ("one_by_one", "in_windows", "sorted_offline", "mixed")
            return SimpleNamespace(**dict.fromkeys(names, lambda: None))

        return make

    def onnx(workload: Workload, *, int8: bool = False) -> Any:
        made["onnx", int8] += 1
        return SimpleNamespace(in_windows=lambda: None)

    def gemms(
        backbone: Backbone,
        dtype: torch.dtype,
        device: str,
        *,
        whole_last_layer: bool,
        traffic: bool,
        record: object,
    ) -> Any:
        made["gemms", (device, dtype, whole_last_layer, traffic, record)] += 1
        return SimpleNamespace(run=lambda *size: None)

    monkeypatch.setattr(serving, "Engine", engine)
    monkeypatch.setattr(serving, "Transformers", peer("transformers"))
    monkeypatch.setattr(serving, "Peft", peer("peft"))
    monkeypatch.setattr(serving, "OnnxRuntime", onnx)
    monkeypatch.setattr(serving, "Gemms", gemms)
    monkeypatch.setattr(serving, "cuda_recorder", lambda: "recorder")
    return made


def ratios_of(names: list[str], workload: Workload) -> set[str]:
    return set(serving.summarise({name: [1.0] for name in names}, workload)["ratios"])


@pytest.fixture(params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def names_on(
    precision: str,
    tiny_backbone: Backbone,
    workload: Workload,
    stand_ins: Counter[tuple[str, Any]],
    tmp_path: Path,
) -> Callable[[str], list[str]]:
    """A function (device) -> all systems there, in their order; `stand_ins` has who was made."""

    def names(device: str) -> list[str]:
        given = tiny_backbone, workload, tmp_path, precision, 16, device
        return list(serving.ours(*given) | serving.peers(*given))

    return names


def test_on_a_cpu_there_is_int8_and_no_traffic(
    precision: str,
    names_on: Callable[[str], list[str]],
    workload: Workload,
    stand_ins: Counter[tuple[str, Any]],
) -> None:
    names, dtype = names_on("cpu"), DTYPES[precision]
    assert names == [*OURS, *TORCH_PEERS, *ONNX, *GEMMS]
    assert ratios_of(names, workload) == set(serving.RATIOS) - {"mixed_vs_traffic"}
    assert stand_ins == {
        ("engine", ("cpu", precision)): 5,
        ("engine", ("cpu", "int8")): 1,
        ("transformers", ("cpu", dtype)): 1,
        ("peft", ("cpu", dtype)): 1,
        ("gemms", ("cpu", dtype, True, False, None)): 1,
        ("gemms", ("cpu", dtype, False, False, None)): 1,
        ("onnx", True): 1,
        ("onnx", False): 1,
    }


def test_on_a_gpu_all_is_there_but_int8_and_onnx(
    precision: str,
    names_on: Callable[[str], list[str]],
    workload: Workload,
    stand_ins: Counter[tuple[str, Any]],
) -> None:
    """And beside the products alone are those with memory traffic, all of them recorded."""
    names, dtype = names_on("cuda"), DTYPES[precision]
    float_ours = [name for name in OURS if "int8" not in name]
    assert names == [*float_ours, *TORCH_PEERS, *GEMMS, TRAFFIC]
    assert ratios_of(names, workload) == set(serving.RATIOS) - INT8_RATIOS - {"mixed_vs_onnx"}
    assert stand_ins == {
        ("engine", ("cuda", precision)): 5,
        ("transformers", ("cuda", dtype)): 1,
        ("peft", ("cuda", dtype)): 1,
        ("gemms", ("cuda", dtype, True, False, "recorder")): 1,
        ("gemms", ("cuda", dtype, False, False, "recorder")): 1,
        ("gemms", ("cuda", dtype, False, True, "recorder")): 1,
    }


def test_the_clock_stops_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system returns after a second, and what it has begun takes ten more."""
    now, events = [0.0], []

    def happens(name: str, seconds: float) -> Callable[[], None]:
        def happen() -> None:
            events.append(name)
            now[0] += seconds

        return happen

    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda _: None)
    monkeypatch.setattr(serving, "time", clock)
    systems: dict[str, serving.System] = {"a": happens("a", 1.0), "b": happens("b", 2.0)}
    found = serving.measure(systems, 2, happens("wait", 10.0))
    assert found == {"a": [11.0, 11.0], "b": [12.0, 12.0]}
    # Also in the round that doesn't count: else its rest would be the next system's.
    assert events[1::2] == ["wait"] * 6
    assert "wait" not in events[::2]
    assert serving.measure(systems, 1) == {"a": [1.0], "b": [2.0]}


def test_only_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    serving.wait_for("cpu")()
    assert not waited
    serving.wait_for("cuda")()
    assert waited


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tiny_backbone: Backbone, workload: Workload) -> list[str]:
    """A GPU by name, and systems that only note where they run; the list takes what happens."""
    happened: list[str] = []

    def made(name: str) -> Callable[..., dict[str, Any]]:
        def make(*given: Any) -> dict[str, Any]:
            precision, budget, device = given[-3:]
            happened.append(f"{precision} {budget} {device}")
            return {name: lambda: happened.append(name)}

        return make

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("wait"))
    monkeypatch.setattr(serving, "prepare", lambda threads: None)
    monkeypatch.setattr(serving, "_SETTLE_S", 0.0)
    monkeypatch.setattr(serving, "load_backbone", lambda: tiny_backbone)
    monkeypatch.setattr(serving, "load_workload", lambda backbone: workload)
    monkeypatch.setattr(serving, "ours", made("mixed bitfit"))
    monkeypatch.setattr(serving, "peers", made(TRAFFIC))
    return happened


def test_a_run_on_a_gpu_says_so_and_wants_nothing(
    gpu: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "serving.json"
    flags = ["--device", "cuda", "--rounds", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["serving", *flags])
    assert serving.main() == 0
    assert gpu[:2] == ["bf16 4096 cuda"] * 2
    assert gpu[2:] == [
        "mixed bitfit",
        "wait",
        TRAFFIC,
        "wait",
        TRAFFIC,
        "wait",
        "mixed bitfit",
        "wait",
    ]
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["machine"]["gpu"] == "A card"
    assert report["precision"] == "bf16"
    assert set(report["ratios"]) == {"mixed_vs_traffic"}
    said = capsys.readouterr().out
    assert said.startswith("2 rows, 7 tokens (test), bf16, A card\n")
    assert "| ratio | measured |\n" in said
    assert "wanted" not in said


def test_a_run_on_a_cpu_says_its_threads_and_what_is_wanted(workload: Workload) -> None:
    seconds = {"mixed bitfit": [1.0], "single bitfit": [2.0]}
    report = serving.summarise(seconds, workload) | {"machine": machine(3), "precision": "fp32"}
    report |= {"rows": 2, "tokens": 7, "data": "test"}
    assert "gpu" not in report["machine"]
    first, *lines = serving.tables(report)
    assert first.startswith("2 rows, 7 tokens (test), fp32, 3 threads, ")
    assert lines[-1] == "| mixed_vs_single | 2 | at least 0.97 |"


def test_batches_go_to_the_device_and_answers_come_back() -> None:
    """On a CPU they are the very same tensors: nothing is copied."""
    given: dict[str, Any] = {}

    def network(**batch: Any) -> Any:
        given.update(batch)
        return SimpleNamespace(logits=torch.ones(1, 2))

    batch = padded([TokenizedRow([5, 6], [0, 0], truncated=False)])
    answers(network, batch, "meta", adapter_names=["task0"])
    assert given.pop("adapter_names") == ["task0"]
    assert {name: value.device.type for name, value in given.items()} == dict.fromkeys(
        batch, "meta"
    )
    answers(network, batch, "cpu")
    assert all(given[name] is batch[name] for name in batch)
    logits = torch.ones(1, 2)
    assert answers(lambda **_: SimpleNamespace(logits=logits), batch, "cpu") is logits
    with pytest.raises(NotImplementedError, match="meta"):  # nothing to bring back, but it's tried
        answers(lambda **_: SimpleNamespace(logits=logits.to("meta")), batch, "cpu")


class Network(nn.Module):
    """As much of a stock network as the peers touch; notes where its inputs and parameters lie."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 2)
        self.config = {"model_type": "none"}
        self.places: set[str] = set()

    def forward(self, **batch: Tensor) -> Any:
        self.places |= {value.device.type for value in (*batch.values(), *self.parameters())}
        return SimpleNamespace(logits=torch.zeros(1, 2))


def test_transformers_and_peft_compute_on_the_device(
    tiny_backbone: Backbone, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one without values; what is copied into the network lies there, too."""
    made: list[Network] = []

    def stock(dtype: torch.dtype) -> Network:
        made.append(Network(tiny_backbone.config.hidden_size).to(dtype))
        return made[-1]

    monkeypatch.setattr(peers, "stock_network", stock)
    deltas = [noisy_delta(tiny_backbone, task_spec(name), "head", 0) for name in ("a", "b")]
    system = Transformers(workload, deltas, torch.float32, "meta")
    assert {v.device.type for pairs in system._values for _, v in pairs} == {"meta"}
    with torch.inference_mode():
        for run in (system.one_by_one, system.in_windows, system.sorted_offline):
            run()
    assert made[-1].places == {"meta"}
    pytest.importorskip("peft")
    with torch.inference_mode(False):
        mixed = Peft(workload, 2, torch.float32, "meta")
    with torch.inference_mode():
        mixed.mixed()
    assert made[-1].places == {"meta"}
