"""The serving benchmark on a GPU: its systems, their precision, and the clock; by stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltas import DTYPES, Backbone, TokenizedRow
from tests.bench import serving
from tests.bench.workload import Workload

TRAFFIC = "the GEMMs that we run, and memory traffic"


@pytest.fixture
def workload() -> Workload:
    """Rows of three and four tokens, of two tasks."""
    rows = [TokenizedRow([7] * size, [0] * size, truncated=False) for size in (3, 4)]
    return Workload([("a",)] * 2, rows, [0, 1], "test")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_system_runs_on_the_device_asked_for(
    device: str,
    precision: str,
    workload: Workload,
    tiny_backbone: Backbone,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU has no int8 and no ONNX, and a floor with memory traffic instead."""
    asked: list[Any] = []

    def make(*given: Any, **named: Any) -> Any:
        asked.extend([*given, *named.values()])
        names = ("predict", "run", "one_by_one", "in_windows", "sorted_offline", "mixed")
        return SimpleNamespace(**dict.fromkeys(names, lambda *_: None))

    for name in ("Engine", "Transformers", "Peft", "OnnxRuntime", "Gemms"):
        monkeypatch.setattr(serving, name, make)
    monkeypatch.setattr(serving, "cuda_recorder", lambda: "recorder")
    given = tiny_backbone, workload, tmp_path, precision, 16, device
    names = [*serving.ours(*given), *serving.peers(*given)]
    on_gpu = device == "cuda"
    only_on_cpus = {"mixed bitfit, int8", "ONNX Runtime float32, windows of 32"}
    only_on_cpus |= {"ONNX Runtime int8, windows of 32"}
    assert only_on_cpus & set(names) == (set() if on_gpu else only_on_cpus)
    assert (TRAFFIC in names) == on_gpu
    texts = [value for value in asked if isinstance(value, str)]
    assert {"cpu", "cuda"} & set(texts) == {device}
    assert ("recorder" in texts) == on_gpu
    assert {value for value in asked if isinstance(value, torch.dtype)} == {DTYPES[precision]}
    found = set(serving.summarise({name: [1.0] for name in names}, workload)["ratios"])
    assert ("mixed_vs_traffic" in found, "mixed_vs_onnx" in found) == (on_gpu, not on_gpu)


def test_the_clock_stops_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system returns after a second, and the device works on for ten more."""
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
