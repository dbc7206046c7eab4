"""Keeps what a run predicted, beside its delta: `<strategy>.predictions.parquet`.

Confusions, calibration and comparisons of runs need the answer to every row; the manifest has their
summary only. The file has row numbers, labels and logits, and never a text. Written by
`training.run.train_delta`, and read by whoever compares runs. Reading and writing stand side by
side, so that both know the same columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from deltas.format import write_atomically
from training.data.rows import Rows

ENDING = ".predictions.parquet"


@dataclass(frozen=True)
class PredictedSplit:
    """The rows of a split and their logits, float32 [R, C]."""

    name: str
    rows: Rows
    logits: Tensor


def predictions_path(delta: Path) -> Path:
    """Return the path of the predictions that belong to a delta's file."""
    return delta.with_name(delta.stem + ENDING)


def write_predictions(path: Path, splits: Sequence[PredictedSplit]) -> None:
    """Write the predictions of some splits in one step, as parquet.

    Columns: `split`; `row`, the number in the file that the row was read from, counted from 1;
    `gold`, a label's code, a value, or a list of 0 and 1; `logits`, a list of float32.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    gold = [label for split in splits for label in split.rows.labels]
    table = pa.table(
        {
            "split": [split.name for split in splits for _ in range(len(split.rows))],
            "row": [
                split.rows.number(position)
                for split in splits
                for position in range(len(split.rows))
            ],
            "gold": gold,
            "logits": pa.array(
                [row for split in splits for row in split.logits.tolist()], pa.list_(pa.float32())
            ),
        }
    )
    content = BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_atomically(path, content.getvalue())


def read_predictions(path: Path, split: str) -> tuple[list[int], list[object], Tensor]:
    """Read a split's row numbers, labels and logits, float32 [R, C]."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, filters=[("split", "==", split)])
    columns = (table[name].to_pylist() for name in ("row", "gold", "logits"))
    rows, gold, logits = columns
    return rows, gold, torch.tensor(logits)
