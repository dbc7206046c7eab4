"""A delta in memory: values of the selected parameters, the head, and the manifest.

Values, not differences: copying them over the backbone's is exact, and undoing it is copying back.
Legend of shapes in this package: H hidden width, C head outputs, K selected values of one
parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from deltas.manifest import EntryInfo, Manifest


@dataclass(frozen=True)
class DenseEntry:
    """All values of one parameter.

    Attributes:
        values: float32, the parameter's own shape.
    """

    values: Tensor

    def info(self, name: str) -> EntryInfo:
        """Describe this entry for the manifest."""
        shape = tuple(self.values.shape)
        return EntryInfo(name=name, kind="dense", shape=shape, count=prod(shape))

    def resolve(self, frozen: Tensor) -> Tensor:
        """The parameter's full values, in the dtype of `frozen`; differentiable."""
        return self.values.to(frozen.dtype)


@dataclass(frozen=True)
class SparseEntry:
    """Some values of one parameter.

    Attributes:
        indices: int64 [K], positions in the flattened parameter, strictly increasing.
        values: float32 [K].
        shape: the whole parameter's shape.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def info(self, name: str) -> EntryInfo:
        """Describe this entry for the manifest."""
        return EntryInfo(name=name, kind="sparse", shape=self.shape, count=len(self.indices))

    def resolve(self, frozen: Tensor) -> Tensor:
        """A copy of `frozen` with the selected values laid in; differentiable."""
        flat = frozen.reshape(-1).index_put((self.indices,), self.values.to(frozen.dtype))
        return flat.view(self.shape)


Entry = DenseEntry | SparseEntry


@dataclass(frozen=True)
class Delta:
    """One task's file, read or about to be written.

    Attributes:
        manifest: what the delta says about itself.
        entries: by Hugging Face parameter name of `BertForSequenceClassification`.
        head_weight: float32 [C, H].
        head_bias: float32 [C].
        version: digest of the content, 16 hex characters; "" before it was written.
        num_bytes: size of the file; 0 before it was written.
    """

    manifest: Manifest
    entries: dict[str, Entry]
    head_weight: Tensor
    head_bias: Tensor
    version: str = ""
    num_bytes: int = 0


def task_scores(kind: str, logits: Tensor) -> Tensor:
    """Turn logits into scores: softmax, independent sigmoids, or the value itself.

    Args:
        kind: the task's kind.
        logits: float [..., C].

    Returns:
        float32 [..., C]: probabilities for label tasks, the predicted value for regression.
    """
    logits = logits.float()
    if kind == "single_label":
        return torch.softmax(logits, dim=-1)
    if kind == "multi_label":
        return torch.sigmoid(logits)
    return logits
