"""Re-initialised backbones, and deltas over the original that compute the same."""

from __future__ import annotations

import pytest
import torch

from deltas import (
    Backbone,
    DenseEntry,
    Entry,
    SparseEntry,
    TrainableOverlay,
    encode,
    pack,
)
from deltas.backbone.backbone import weights_fingerprint
from deltas.encoder.window_attention import WindowAttention
from deltas.manifest import Reinit
from training.strategies import grammar
from training.strategies.reinit import entries_over, reinitialise

ROWS = [([2, 7, 9, 3], [0, 0, 0, 0]), ([2, 40, 3, 50, 51, 3], [0, 0, 0, 1, 1, 1])]


def trained_over(backbone: Backbone, strategy: str) -> dict[str, Entry]:
    """Entries as training leaves them: values moved from where they started."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
    entries: dict[str, Entry] = {}
    for name, indices in grammar.select(strategy, shapes, 1).items():
        value = backbone.parameters[name]
        if indices is None:
            entries[name] = DenseEntry(value + torch.randn(value.shape, generator=generator))
        else:
            moved = value.reshape(-1)[indices] + torch.randn(len(indices), generator=generator)
            entries[name] = SparseEntry(indices, moved, tuple(value.shape))
    return entries


def test_none_is_the_backbone_itself(tiny_backbone: Backbone) -> None:
    assert reinitialise(tiny_backbone, "none", 3) is tiny_backbone


def test_biases_become_zero_and_nothing_else_changes(tiny_backbone: Backbone) -> None:
    fresh = reinitialise(tiny_backbone, "biases", 3)
    for name, value in tiny_backbone.parameters.items():
        expected = torch.zeros_like(value) if name.endswith(".bias") else value
        assert torch.equal(fresh.parameters[name], expected)
    assert fresh.ref.fingerprint != tiny_backbone.ref.fingerprint
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


def test_all_parameters_are_drawn_like_bert_draws_them(tiny_backbone: Backbone) -> None:
    fresh = reinitialise(tiny_backbone, "all", 3)
    for name, value in fresh.parameters.items():
        if name.endswith(".bias"):
            assert not value.any()
        elif name.endswith("LayerNorm.weight"):
            assert bool((value == 1).all())
        elif value.numel() > 500:
            assert abs(float(value.std()) - 0.02) < 0.002
            assert abs(float(value.mean())) < 0.003
        assert value.any() or name.endswith(".bias")
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


def test_draws_depend_on_the_seed_only(tiny_backbone: Backbone) -> None:
    first, again, other = (
        reinitialise(tiny_backbone, "all", seed).ref.fingerprint for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("mode", ["none", "biases", "all"])
@pytest.mark.parametrize(
    "strategy", ["head", "bitfit", "bitfit:query", "random:0.05", "layernorm", "random:0.1+top:1"]
)
def test_entries_over_the_original_compute_the_same(
    tiny_backbone: Backbone, mode: Reinit, strategy: str
) -> None:
    """Bit for bit what was trained over the re-initialised one."""
    started_from = reinitialise(tiny_backbone, mode, 3)
    trained = trained_over(started_from, strategy)
    batch = pack(ROWS)
    with torch.no_grad():
        attention = WindowAttention(batch)
        overlay = TrainableOverlay(started_from, trained)
        expected = encode(tiny_backbone.config, overlay, batch, attention)
        entries = entries_over(tiny_backbone, started_from, mode, trained)
        overlay = TrainableOverlay(tiny_backbone, entries)
        found = encode(tiny_backbone.config, overlay, batch, attention)
    assert torch.equal(found, expected)
    biases = {name for name in tiny_backbone.parameters if name.endswith(".bias")}
    held = {"none": set(), "biases": biases, "all": set(tiny_backbone.parameters)}[mode]
    assert set(entries) == held | set(trained)
    order = list(tiny_backbone.parameters)
    assert [order.index(name) for name in entries] == sorted(map(order.index, entries))
