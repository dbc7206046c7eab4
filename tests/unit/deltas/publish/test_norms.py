"""The change of a delta by layer, part and kind, against the same sums over stock parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltas import Backbone, Store, write_delta
from deltas.publish import norms
from deltas.publish.norms import ChangeNorm, NormCache, change_norms
from tests.factories import TOY_TASKS, make_delta


def total(found: list[ChangeNorm]) -> float:
    return sum(each.norm**2 for each in found) ** 0.5


@pytest.mark.parametrize("strategy", ["bitfit", "layernorm", "random:0.05", "full", "top:1"])
def test_the_parts_add_up_to_the_whole_change(tiny_backbone: Backbone, strategy: str) -> None:
    delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], strategy)
    changes = [
        entry.resolve(tiny_backbone.parameters[name]) - tiny_backbone.parameters[name]
        for name, entry in delta.entries.items()
    ]
    expected = torch.cat([each.reshape(-1) for each in changes]).norm()
    found = change_norms(delta, tiny_backbone)
    assert total(found) == pytest.approx(float(expected), rel=1e-5)
    heads = sum(tensor.numel() for tensor in (delta.head_weight, delta.head_bias))
    assert sum(each.values for each in found) == delta.manifest.trainable_parameters - heads
    kinds = {(each.part, each.kind) for each in found}
    if strategy == "bitfit":
        assert {kind for _, kind in kinds} == {"bias"}
    if strategy == "layernorm":
        assert kinds == {("LayerNorm", "bias"), ("LayerNorm", "weight")}
    if strategy == "top:1":
        last = str(tiny_backbone.config.num_layers - 1)
        assert {each.layer for each in found} <= {last, "pooler"}


def test_one_changed_value_is_found_where_it_is(tiny_backbone: Backbone) -> None:
    delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], "bitfit")
    for name, entry in delta.entries.items():
        entry.values.copy_(tiny_backbone.parameters[name])
    delta.entries["bert.encoder.layer.1.intermediate.dense.bias"].values[3] += 2.0
    (changed,) = [each for each in change_norms(delta, tiny_backbone) if each.norm > 1e-6]
    assert (changed.layer, changed.part, changed.kind) == ("1", "feed-forward", "bias")
    assert changed.norm == pytest.approx(2.0, rel=1e-5)
    layers = [each.layer for each in change_norms(delta, tiny_backbone)]
    assert layers == sorted(
        layers, key=lambda layer: {"embeddings": -1, "pooler": 99}.get(layer, 0)
    )


def test_a_file_is_read_once_while_it_is_kept(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("toy2", "toy3"):
        delta = make_delta(tiny_backbone, TOY_TASKS[task], "bitfit")
        write_delta(delta, tmp_path / f"{task}.safetensors")
    first, second = Store([tmp_path]).records
    monkeypatch.setattr(norms, "_MAX_KEPT", 1)
    read: list[str] = []
    compute: Callable[..., list[ChangeNorm]] = change_norms

    def counted(delta: object, backbone: Backbone) -> list[ChangeNorm]:
        read.append(type(delta).__name__)
        return compute(delta, backbone)

    monkeypatch.setattr(norms, "change_norms", counted)
    cache = NormCache()
    assert cache.of(first, tiny_backbone) is cache.of(first, tiny_backbone)
    assert len(read) == 1
    assert cache.of(second, tiny_backbone).version == second.version
    cache.of(first, tiny_backbone)
    assert len(read) == 3, "only one delta is kept"
