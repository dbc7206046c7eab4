"""Lays one delta over the frozen backbone, the same for all rows: the overlay that training uses.

The entries' values are the only tensors that can require gradients. The gradient of a sparse entry
is computed at its K values only, so neither a dense gradient nor a mask of the matrix ever exists.
Serving lets every row see another delta (`deltas.encoder.bank_overlay`); both overlays feed the
same encoder (`deltas.encoder.encoder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.backbone.layout import encoder_layout
from deltas.delta import DenseEntry, Entry, SparseEntry
from deltas.encoder.encoder import Overlay
from deltas.kernels.sparse_gradient import sddmm


@dataclass
class _RowRange:
    """Consecutive output rows of a site's matrix that one product computes."""

    parts: tuple[str, ...]  # Hugging Face names of the parameters that are stacked here
    start: int
    stop: int
    kind: str  # "frozen", "dense" or "sparse", the source of the values
    # Only for sparse ranges: a copy of the frozen output rows with the entries' values, int64 [K]
    # flat indices into it, and, for embedding tables, the first of the K values of each output
    # row, and K.
    patched: Tensor | None = None
    indices: Tensor | None = None
    offsets: Tensor | None = None


class TrainableOverlay(Overlay):
    """The overlay of one delta, differentiable with respect to the entries' values.

    Args:
        backbone: the weights wherever no entry replaces them.
        entries: entries by Hugging Face name; their values may require gradients.
        device: device to compute on.
        dtype: dtype to compute in; entries keep theirs.
    """

    def __init__(
        self,
        backbone: Backbone,
        entries: Mapping[str, Entry],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.entries = dict(entries)
        self._eps = backbone.config.layer_norm_eps
        self._layout = encoder_layout(backbone.config)
        self._frozen = {name: w.to(device, dtype) for name, w in backbone.weights.items()}
        self._sizes = {name: parameter.shape[0] for name, parameter in backbone.parameters.items()}
        self._ranges = {
            name: self._plan(name) for name, weight in self._frozen.items() if weight.ndim == 2
        }
        self._vectors: dict[str, Tensor] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the entries' values again; call it before a forward pass if they changed."""
        for name, frozen in self._frozen.items():
            if frozen.ndim == 1:
                self._vectors[name] = self._vector(name, frozen)
        with torch.no_grad():
            for row_range in chain.from_iterable(self._ranges.values()):
                if row_range.patched is not None and row_range.indices is not None:
                    values = self._sparse_values(row_range).to(row_range.patched.dtype)
                    row_range.patched.view(-1)[row_range.indices] = values

    def embed(self, site: str, ids: Tensor) -> Tensor:
        (row_range,) = self._ranges[f"{site}.weight"]
        if row_range.kind == "sparse":
            values = self._sparse_values(row_range)
            found: Tensor = _SparseEmbedding.apply(  # type: ignore[no-untyped-call]
                ids, values, row_range.patched, row_range.indices, row_range.offsets
            )
            return found
        return F.embedding(ids, self._matrix(f"{site}.weight", row_range))

    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        del per_position  # all rows see the same values
        ranges = self._ranges[f"{site}.weight"]
        bias = self._vectors[f"{site}.bias"]
        outs = []
        for row_range in ranges:
            part = bias if len(ranges) == 1 else bias[row_range.start : row_range.stop]
            if row_range.kind == "sparse":
                values = self._sparse_values(row_range)
                shifted = _SparseLinear.apply(x, part, values, row_range.patched, row_range.indices)  # type: ignore[no-untyped-call]
                outs.append(shifted)
            else:
                outs.append(F.linear(x, self._matrix(f"{site}.weight", row_range), part))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)

    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        del per_position
        weight, bias = self._vectors[f"{site}.weight"], self._vectors[f"{site}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self._eps)

    def _plan(self, name: str) -> list[_RowRange]:
        """Cut a stacked matrix into ranges of one kind, so that frozen parts need no gradient."""
        ranges: list[_RowRange] = []
        start = 0
        for part in self._layout[name]:
            kind = _kind(self.entries.get(part))
            stop = start + self._sizes[part]
            if ranges and ranges[-1].kind == kind:
                ranges[-1].parts += (part,)
                ranges[-1].stop = stop
            else:
                ranges.append(_RowRange((part,), start, stop, kind))
            start = stop
        for row_range in ranges:
            if row_range.kind == "sparse":
                self._prepare_sparse(name, row_range)
        return ranges

    def _prepare_sparse(self, name: str, row_range: _RowRange) -> None:
        frozen = self._frozen[name]
        row_range.patched = frozen[row_range.start : row_range.stop].clone()
        columns = frozen.shape[1]
        shifted, rows = [], 0
        for part in row_range.parts:
            entry = self.entries[part]
            assert isinstance(entry, SparseEntry)
            shifted.append(entry.indices.to(frozen.device) + rows * columns)
            rows += self._sizes[part]
        row_range.indices = torch.cat(shifted)
        if name.startswith("embeddings."):
            starts = torch.arange(rows + 1, device=frozen.device) * columns
            row_range.offsets = torch.searchsorted(row_range.indices, starts)

    def _sparse_values(self, row_range: _RowRange) -> Tensor:
        values = [self.entries[part].values for part in row_range.parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def _matrix(self, name: str, row_range: _RowRange) -> Tensor:
        frozen = self._frozen[name]
        if row_range.kind == "frozen":
            whole = (row_range.start, row_range.stop) == (0, frozen.shape[0])
            return frozen if whole else frozen[row_range.start : row_range.stop]
        values = [self.entries[part].values.to(frozen.dtype) for part in row_range.parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def _vector(self, name: str, frozen: Tensor) -> Tensor:
        parts = self._layout[name]
        if not any(part in self.entries for part in parts):
            return frozen
        values = torch.split(frozen, [self._sizes[part] for part in parts])
        resolved = [
            self.entries[part].resolve(value) if part in self.entries else value
            for part, value in zip(parts, values, strict=True)
        ]
        return resolved[0] if len(resolved) == 1 else torch.cat(resolved)


def _kind(entry: Entry | None) -> str:
    if entry is None:
        return "frozen"
    return "dense" if isinstance(entry, DenseEntry) else "sparse"


class _SparseLinear(torch.autograd.Function):
    """y = x W^T + b with K trained values v of W.

    dL/dv_k is the sum over all rows of x of dL/dy[:, row_k] x[:, column_k].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, values: Tensor, patched: Tensor, indices: Tensor
    ) -> Tensor:
        del values  # part of `patched`; an argument so that autograd asks for its gradient
        ctx.save_for_backward(x, indices)
        ctx.patched = patched
        return F.linear(x, patched, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, indices = ctx.saved_tensors
        needs_x, needs_bias, needs_values = ctx.needs_input_grad[:3]
        grad_x = grad @ ctx.patched if needs_x else None
        grad_bias = grad.sum(0) if needs_bias else None
        grad_values = sddmm(grad, x, indices) if needs_values else None
        return grad_x, grad_bias, grad_values, None, None


class _SparseEmbedding(torch.autograd.Function):
    """Embedding rows of a table with K trained values; the gradient visits only rows that occur."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, values: Tensor, patched: Tensor, indices: Tensor, offsets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(ids, indices, offsets)
        ctx.num_values = len(values)
        return F.embedding(ids, patched)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # [N, H]
        ids, indices, offsets = ctx.saved_tensors
        counts = offsets[ids + 1] - offsets[ids]  # [N] trained values of each token's row
        token = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
        within = torch.arange(len(token), device=ids.device) - (counts.cumsum(0) - counts)[token]
        index = offsets[ids][token] + within  # of each (token, value) pair's value among the K
        products = grad[token, indices[index] % grad.shape[1]].float()
        total = torch.zeros(ctx.num_values, device=grad.device).index_add_(0, index, products)
        return None, total, None, None, None
