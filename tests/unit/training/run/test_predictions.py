"""The file of a run's predictions: numbers of rows, labels and logits, and no texts."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from training.data.rows import Rows
from training.run.predictions import (
    PredictedSplit,
    predictions_path,
    read_predictions,
    write_predictions,
)


@pytest.mark.parametrize(
    ("labels", "outputs"), [([1, 0, 1], 2), ([0.5, 1.0, -2.0], 1), ([[1, 0], [0, 0], [1, 1]], 2)]
)
def test_predictions_are_read_back_and_hold_no_text(
    tmp_path: Path, labels: list[object], outputs: int
) -> None:
    rows = Rows([("secret one",), ("secret two",), ("secret three",)], labels)  # type: ignore[arg-type]
    logits = torch.randn(3, outputs, generator=torch.Generator().manual_seed(0))
    held = rows.take([2, 0])
    path = predictions_path(tmp_path / "random-0.001.safetensors")
    assert path.name == "random-0.001.predictions.parquet"
    parts = [PredictedSplit("selection", held, logits[:2]), PredictedSplit("dev", rows, logits)]
    write_predictions(path, parts)
    numbers, gold, found = read_predictions(path, "selection")
    assert (numbers, gold) == ([3, 1], [labels[2], labels[0]])
    assert torch.equal(found, logits[:2])
    assert read_predictions(path, "dev")[0] == [1, 2, 3]
    assert pq.read_schema(path).names == ["split", "row", "gold", "logits"]
    assert b"secret" not in path.read_bytes()
