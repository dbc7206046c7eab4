"""A delta in memory: the values of its trained parameters, the head, and the manifest.

A delta holds values, not differences, so that it reproduces the trained parameters exactly.
`deltas.format` reads and writes deltas; `deltas.encoder` explains the letters of shapes.
Tested by tests/property/test_delta_laws.py and tests/unit/deltas/test_format.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from deltas.manifest import EntryInfo, Manifest


@dataclass(frozen=True)
class DenseEntry:
    """An entry with all values of one parameter."""

    values: Tensor  # float32, the parameter's own shape

    def info(self, name: str) -> EntryInfo:
        """Return this entry's part of the manifest, under a parameter's name."""
        shape = tuple(self.values.shape)
        return EntryInfo(name=name, kind="dense", shape=shape, count=prod(shape))

    def resolve(self, frozen: Tensor) -> Tensor:
        """Return the parameter's values in the dtype of `frozen`; differentiable."""
        return self.values.to(frozen.dtype)


@dataclass(frozen=True)
class SparseEntry:
    """An entry with some values of one parameter."""

    indices: Tensor  # int64 [K], flat indices into the parameter, strictly increasing
    values: Tensor  # float32 [K]
    shape: tuple[int, ...]  # of the whole parameter

    def info(self, name: str) -> EntryInfo:
        """Return this entry's part of the manifest, under a parameter's name."""
        return EntryInfo(name=name, kind="sparse", shape=self.shape, count=len(self.indices))

    def resolve(self, frozen: Tensor) -> Tensor:
        """Return a copy of `frozen` with the selected values replaced; differentiable."""
        flat = frozen.reshape(-1).index_put((self.indices,), self.values.to(frozen.dtype))
        return flat.view(self.shape)


Entry = DenseEntry | SparseEntry


@dataclass(frozen=True)
class Delta:
    """One task's trained values and head, read from a file or about to be written."""

    manifest: Manifest
    entries: dict[str, Entry]  # by the parameter's name in `BertForSequenceClassification`
    head_weight: Tensor  # float32 [C, H]
    head_bias: Tensor  # float32 [C]
    version: str = ""  # digest of the content, 16 hex digits; "" before the first write
    num_bytes: int = 0  # size of the file; 0 before the first write


def task_scores(kind: str, logits: Tensor) -> Tensor:
    """Turn logits [..., C] into float32 scores of the same shape, by the task's kind.

    These are softmax, independent sigmoids, or the unchanged value of a regression.
    """
    logits = logits.float()
    if kind == "single_label":
        return torch.softmax(logits, dim=-1)
    if kind == "multi_label":
        return torch.sigmoid(logits)
    return logits
