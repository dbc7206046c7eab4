"""Predictions beside a delta: pages of rows, their version, and files from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deltas import Backbone, Record, Store, write_delta
from deltas.errors import PredictionsError
from deltas.store import predictions
from deltas.store.predictions import predictions_path, read_rows
from tests.factories import TOY_TASKS, make_delta
from training.data.rows import Rows
from training.run.output import PredictedSplit, write_predictions

LABELS = [1, 0, 1, 1, 0]
LOGITS = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def record(tiny_backbone: Backbone, tmp_path: Path) -> Record:
    """A delta with the predictions of its run beside it."""
    path = tmp_path / "head.safetensors"
    delta = write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head"), path)
    rows = Rows([(f"secret {number}",) for number in range(5)], LABELS)
    splits = [
        PredictedSplit("selection", rows.take([4, 0]), LOGITS[[4, 0]]),
        PredictedSplit("validation", rows, LOGITS),
    ]
    write_predictions(predictions_path(path), splits, delta.version)
    (found,) = Store([tmp_path]).records
    return found


def test_pages_together_are_the_split(record: Record) -> None:
    rows: list[int] = []
    logits: list[list[float]] = []
    offset: int | None = 0
    while offset is not None:
        page = read_rows(record, "validation", offset, 2)
        assert len(page.rows) <= 2
        assert page.version == record.version
        assert page.splits == {"selection": 2, "validation": 5}
        rows, logits, offset = rows + page.rows, logits + page.logits, page.next
    assert rows == [1, 2, 3, 4, 5]
    assert torch.equal(torch.tensor(logits), LOGITS)
    assert read_rows(record, "validation", 9, 2).rows == []
    selection = read_rows(record, "selection", 0, 10)
    assert (selection.rows, selection.gold) == ([5, 1], [0, 1])


def test_many_labels_make_pages_shorter(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "_MAX_NUMBERS", 4)
    page = read_rows(record, "validation", 0, 100)
    assert (len(page.rows), page.next) == (2, 2)


def test_predictions_of_another_version_are_refused(
    record: Record, tiny_backbone: Backbone
) -> None:
    path, before = record.path, record.version
    delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", seed=5)
    write_delta(delta, path, replace=True)
    (replaced,) = Store([path.parent]).records
    with pytest.raises(PredictionsError, match=f"of version {before}, not {replaced.version}"):
        read_rows(replaced, None, 0, 10)


def test_a_file_without_a_version_is_read_and_says_so(record: Record) -> None:
    path = predictions_path(record.path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert read_rows(record, "validation", 0, 10).version is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _with(changes: dict[str, list[object]]) -> Callable[[Path], None]:
    facts: dict[str, list[object]] = {
        "split": ["validation", "validation"],
        "row": [1, 2],
        "gold": [0, 1],
        "logits": [[0.5, 1.0], [1.0, 2.0]],
    }
    return lambda path: pq.write_table(pa.table(facts | changes), path)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, r"no predictions of toy2/head: .* head.predictions.parquet beside"),
        (_cut, "no parquet file"),
        (lambda path: path.write_bytes(b"PAR1"), "no parquet file"),
        (lambda path: pq.write_table(pa.table({"row": [1]}), path), "is damaged"),
        (_with({"logits": [[0.5], [1.0]]}), "is damaged"),
        (_with({"logits": [[0.5, 1.0], None]}), "is damaged"),
        (_with({"logits": [[0.5, 1.0], [0.5, float("nan")]]}), "is damaged"),
        (_with({"gold": ["secret", "text"]}), "is damaged"),
        (_with({"row": ["secret", "text"]}), "is damaged"),
        (
            _with({"split": ["dev", "dev"]}),
            "no predictions of a split 'validation'. Available: dev",
        ),
    ],
    ids=["gone", "cut", "magic", "columns", "width", "null", "nan", "text", "row", "split"],
)
def test_a_file_that_holds_no_predictions_is_told(
    record: Record, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(predictions_path(record.path))
    with pytest.raises(PredictionsError, match=problem) as caught:
        read_rows(record, "validation", 0, 10)
    assert str(record.path.parent) not in str(caught.value), "nothing tells where files lie"
