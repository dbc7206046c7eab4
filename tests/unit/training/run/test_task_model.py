"""Losses, whose parts add up to the whole, and finished models, which compute as a server does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.engine import Engine
from deltas import DTYPES, Backbone, Record, Store, TokenizedRow, tokenize_texts
from training.run.task_model import (
    Model,
    ServedModel,
    TaskModel,
    balanced_weights,
    finished_model,
    loss_sum,
    task_loss,
    total_weight,
)

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
CODES = torch.tensor([0, 2, 2, 2, 1, 2, 2])
FLAGS = torch.tensor([[1.0, 0, 0], [1, 1, 0]] * 3 + [[0, 0, 1]])


def test_balanced_labels_weigh_alike() -> None:
    weights = balanced_weights("single_label", CODES, 3)
    assert weights.tolist() == pytest.approx([7 / 3, 7 / 3, 7 / 15])
    sums = [float(weights[CODES][label == CODES].sum()) for label in range(3)]
    assert sums == pytest.approx([7 / 3] * 3)
    assert balanced_weights("multi_label", FLAGS, 3).tolist() == pytest.approx([1 / 6, 4 / 3, 6])


def test_weighted_and_smoothed_cross_entropy_is_pytorchs() -> None:
    weights = balanced_weights("single_label", CODES, 3)
    expected = F.cross_entropy(LOGITS, CODES, weights, label_smoothing=0.1)
    found = loss_sum("single_label", LOGITS, CODES, weights=weights, smoothing=0.1)
    assert float(found / total_weight("single_label", CODES, weights)) == pytest.approx(
        float(expected)
    )


def test_smoothed_flags_are_between_their_values_and_a_half() -> None:
    found = loss_sum("multi_label", LOGITS, FLAGS, smoothing=0.2)
    expected = F.binary_cross_entropy_with_logits(LOGITS, FLAGS * 0.8 + 0.1, reduction="sum")
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("kind", "logits", "labels"),
    [
        ("single_label", LOGITS, CODES),
        ("multi_label", LOGITS, FLAGS),
        ("regression", LOGITS[:, :1], LOGITS[:, 1]),
    ],
)
def test_parts_add_up_to_the_whole(kind: str, logits: Tensor, labels: Tensor) -> None:
    weights = None if kind == "regression" else balanced_weights(kind, labels, 3)
    total = total_weight(kind, labels, weights)
    parts = sum(
        loss_sum(kind, logits[part], labels[part], 2.0, weights) / total
        for part in (slice(0, 2), slice(2, 7))
    )
    whole = loss_sum(kind, logits, labels, 2.0, weights) / total
    assert float(parts) == pytest.approx(float(whole))
    assert float(task_loss(kind, logits, labels)) == pytest.approx(
        float(loss_sum(kind, logits, labels) / total_weight(kind, labels))
    )


def model_of(backbone: Backbone, record: Record, precision: str) -> TaskModel:
    """The model of a run that has trained this delta."""
    delta, task = record.load(), record.manifest.task
    return TaskModel(
        backbone,
        dict(delta.entries),
        (delta.head_weight, delta.head_bias),
        torch.device("cpu"),
        DTYPES[precision],
        pooling=task.pooling,
        pairs=task.pairs,
    )


def largest_difference(model: Model, rows: list[TokenizedRow], served: Tensor) -> float:
    with torch.no_grad():
        return float((model.logits(rows) - served).abs().max())


@pytest.fixture(scope="module")
def engines(tiny_backbone: Backbone, pooled_deltas: Path) -> dict[str, Engine]:
    """A server's engine of each precision. To make one takes longer than all of its answers."""
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    return {
        precision: Engine(tiny_backbone, store, device="cpu", precision=precision)
        for precision in ("fp32", "bf16")
    }


@pytest.mark.parametrize("strategy", ["bitfit", "layernorm", "head", "top:1"])
@pytest.mark.parametrize(
    "task", ["toy2", "toymean", "toysplit", "toysplitmean", "toymulti", "toylayers"]
)
def test_a_finished_model_has_the_logits_of_the_server(
    tiny_backbone: Backbone, engines: dict[str, Engine], task: str, strategy: str
) -> None:
    """In the precision of the run; rounding in the training's own pass would show in bfloat16.

    A head that trains alone has no other pass than the server's.
    """
    store = engines["fp32"].store
    record = store.resolve(task, strategy)
    width = len(record.manifest.task.text_fields)
    texts = [tuple(["good film " * n, "bad"][:width]) for n in range(1, 12)]
    for precision, engine in engines.items():
        others = engine.tokenize(store.resolve("toy68", "bitfit"), [("very good",)] * 3)
        answers = engine.predict([*others, *engine.tokenize(record, texts)])
        served = torch.tensor(answers[len(others) :])
        spec = record.manifest.task
        rows = tokenize_texts(tiny_backbone.tokenizer, spec.max_length, texts, pairs=spec.pairs)
        model = model_of(tiny_backbone, record, precision)
        finished = finished_model(model, tiny_backbone, record.load().entries, spec)
        assert isinstance(finished, TaskModel if strategy == "head" else ServedModel)
        assert largest_difference(finished, rows, served) < 2e-6
        if strategy == "head":
            assert largest_difference(model, rows, served) < 2e-6
        elif precision == "bf16":
            assert largest_difference(model, rows, served) > 2e-4


@pytest.mark.parametrize("strategy", ["head", "bitfit"])
def test_a_finished_model_shares_the_head(
    tiny_backbone: Backbone, pooled_deltas: Path, strategy: str
) -> None:
    """So that a calibration of the trained model's head is judged, too."""
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    record = store.resolve("toy2", strategy)
    model = model_of(tiny_backbone, record, "fp32")
    entries = record.load().entries
    finished = finished_model(model, tiny_backbone, entries, record.manifest.task)
    rows = tokenize_texts(tiny_backbone.tokenizer, 32, [("good",)])
    before = finished.logits(rows).detach().clone()
    with torch.no_grad():
        for part in model.head:
            part.mul_(2)
    assert torch.equal(finished.logits(rows), 2 * before)
