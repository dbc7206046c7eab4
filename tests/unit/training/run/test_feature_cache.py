"""Cached features: equal answers and gradients, and the limit of their size."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from deltas import Backbone, TokenizedRow, tokenize_texts
from deltas.manifest import Pooling
from training.run import feature_cache
from training.run.feature_cache import frozen_depth
from training.run.task_model import TaskModel, initial_entries, initial_head
from training.strategies import grammar

FEATURES = 11 * 36 * 4  # bytes of a pooled output for each of `rows_of`, in float32
WORDS = ["the", "film", "and", "very", "not"]


def rows_of(backbone: Backbone) -> list[TokenizedRow]:
    texts = [(" ".join(WORDS[: 1 + number % 5]) + f" {number}",) for number in range(11)]
    return tokenize_texts(backbone.tokenizer, 16, texts)


def model_of(backbone: Backbone, freeze: str, pooling: Pooling = "cls") -> TaskModel:
    shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
    selection = grammar.select(freeze, shapes, 0)
    entries = initial_entries(backbone, selection, torch.device("cpu"))
    vectors = backbone.config.num_layers + 1 if pooling == "layers" else 1
    head = initial_head(2, vectors * backbone.config.hidden_size, 0)
    device = torch.device("cpu")
    return TaskModel(backbone, entries, head, device, torch.float32, pooling=pooling)


@pytest.mark.parametrize(
    ("freeze", "steps"),
    [
        ("head", 3),
        ("params:pooler", 2),
        ("top:1", 1),
        ("bitfit@1", 1),
        ("top:2", 0),
        ("bitfit", 0),
        ("random:0.1", 0),
    ],
)
def test_the_lowest_trained_step(tiny_backbone: Backbone, freeze: str, steps: int) -> None:
    shapes = {name: tuple(value.shape) for name, value in tiny_backbone.parameters.items()}
    names = list(grammar.select(freeze, shapes, 0))
    assert frozen_depth(names, tiny_backbone.config) == steps


@pytest.mark.parametrize(
    ("freeze", "pooling"),
    [
        ("head", "cls"),
        ("head", "mean"),
        ("head", "layers"),
        ("params:pooler", "cls"),
        ("top:1", "cls"),
        ("bitfit@1", "mean"),
    ],
)
def test_kept_results_give_the_same_answers_and_gradients(
    tiny_backbone: Backbone, freeze: str, pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(tiny_backbone)
    found = []
    for keeps in (True, False):
        model = model_of(tiny_backbone, freeze, pooling)
        if keeps:
            model.cache.fill(rows)
            # From here on nothing below the lowest trained layer may be computed.
            with monkeypatch.context() as patch:
                patch.setattr(feature_cache, "embed", None)
                patch.setattr(feature_cache, "encode", None)
                logits = model.logits(rows[3:] + rows[:2])
        else:
            logits = model.logits(rows[3:] + rows[:2])
        logits.square().sum().backward()
        grads = [value.grad for value in model.parameters.values()]
        found.append([logits.detach(), *(grad for grad in grads if grad is not None)])
    for kept, anew in zip(*found, strict=True):
        torch.testing.assert_close(kept, anew, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("freeze", ["top:1", "bitfit@1"])
def test_every_layer_is_read_whatever_trains(tiny_backbone: Backbone, freeze: str) -> None:
    """Only the whole encoder's output is kept: the lower layers' means would be missing."""
    rows = rows_of(tiny_backbone)
    model = model_of(tiny_backbone, freeze, "layers")
    assert model.cache.depth == 0
    assert not model.can_keep_features(rows)
    model.keep_features(rows)
    alone = model_of(tiny_backbone, "head", "layers")
    torch.testing.assert_close(model.features(rows), alone.features(rows), atol=1e-5, rtol=0)


def test_too_much_to_keep_is_computed_anew(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Sequence[TokenizedRow] = rows_of(tiny_backbone)
    monkeypatch.setattr(feature_cache, "_MAX_BYTES", 1000)
    model = model_of(tiny_backbone, "top:1")
    model.cache.fill(rows)
    monkeypatch.setattr(feature_cache, "embed", None)
    with pytest.raises(TypeError):
        model.logits(rows)


@pytest.mark.parametrize(
    ("freeze", "pooling", "most_bytes", "expected"),
    [
        ("head", "cls", FEATURES, True),
        ("head", "cls", FEATURES - 1, False),
        ("head", "layers", 3 * FEATURES, True),
        ("head", "layers", 3 * FEATURES - 1, False),
        ("params:pooler", "cls", 2**31, False),
    ],
)
def test_only_a_head_needs_only_features(
    tiny_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    freeze: str,
    pooling: Pooling,
    most_bytes: int,
    expected: bool,
) -> None:
    """All of them or none."""
    monkeypatch.setattr(feature_cache, "_MAX_BYTES", most_bytes)
    rows = rows_of(tiny_backbone)
    cache = model_of(tiny_backbone, freeze, pooling).cache
    assert (cache.is_whole_encoder and cache.fits(rows)) is expected
