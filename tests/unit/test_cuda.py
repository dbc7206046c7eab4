"""CUDA computes what the CPU does: run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from app.engine import Engine, EngineRow
from deltas import Backbone, Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
WORDS = ["good", "bad", "film", "the", "not", "very", "and", "3"]


def rows_of(engine: Engine, count: int) -> list[EngineRow]:
    """Rows of any tasks and strategies."""
    draw = random.Random(1)
    rows = []
    for _ in range(count):
        record = draw.choice(engine.store.records)
        fields = record.manifest.task.text_fields
        texts = tuple(" ".join(draw.choices(WORDS, k=draw.randrange(1, 9))) for _ in fields)
        rows += engine.tokenize(record, [texts])
    return rows


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.5)])
@pytest.mark.parametrize("max_slots", [0, 4])
def test_any_mix_of_deltas_is_answered_as_on_the_cpu(
    tiny_backbone: Backbone, tiny_deltas: Path, precision: str, tolerance: float, max_slots: int
) -> None:
    """All strategies, all resident or through a few slots."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    here = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    there = Engine(tiny_backbone, store, device="cuda", precision=precision, max_slots=max_slots)
    rows = rows_of(here, 80)
    for mine, theirs in zip(here.run(rows), there.run(rows), strict=True):
        assert theirs == pytest.approx(mine, abs=tolerance)
