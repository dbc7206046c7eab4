"""The benchmark's floor: every product once, one pass over each result, records for a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deltas import Backbone
from tests.bench.floor import Gemms
from tests.unit.app.engine.cuda.test_graphs import Recorder

PRODUCTS = 4 + 5 + 1  # the tiny backbone's layers, the last with a query of its own, and the pooler


class Calls(TorchDispatchMode):
    """Counts matrix products, values that they give, and values that are multiplied in place."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "linear"):
            self.counts.update({"products": 1, "given": result.numel()})
        if name == "mul_":
            self.counts["passed over"] += result.numel()
        assert result.device.type == "meta"
        return result


@pytest.mark.parametrize("whole", [True, False])
def test_traffic_is_one_pass_over_every_result(tiny_backbone: Backbone, whole: bool) -> None:
    """Counted on a device without values: so the matrices and their inputs lie there, too."""
    counts = []
    for traffic in (False, True):
        gemms = Gemms(tiny_backbone, torch.float32, "meta", whole_last_layer=whole, traffic=traffic)
        with torch.inference_mode(), Calls() as calls:
            gemms.run(10, 3)
        counts.append(calls.counts)
    plain, passed = counts
    assert plain["products"] == passed["products"] == PRODUCTS
    width, inner = tiny_backbone.config.hidden_size, tiny_backbone.config.intermediate_size
    layer = 3 * width + width + inner + width
    last = 10 * layer if whole else 10 * 2 * width + 3 * (layer - 2 * width)
    assert plain["given"] == passed["given"] == 10 * layer + last + 3 * width
    assert plain["passed over"] == 0
    assert passed["passed over"] == passed["given"]


def test_products_are_recorded_once_for_each_size(tiny_backbone: Backbone) -> None:
    """And replayed every time."""
    record = Recorder()
    gemms = Gemms(tiny_backbone, torch.float32, "meta", whole_last_layer=True, record=record)
    with torch.inference_mode(), Calls() as calls:
        for number, (size, recorded) in enumerate((((10, 3), 1), ((10, 3), 1), ((10, 2), 2))):
            gemms.run(*size)
            assert record.times == recorded
            assert calls.counts["products"] == PRODUCTS * (number + 1 + recorded)
