"""One delta laid over the frozen backbone, for all rows alike: what training optimises.

The entries' values are the only tensors that can require gradients. A sparse entry's gradient is
gathered at its K positions, so neither a dense gradient nor a mask ever exists for the matrix it
belongs to. Serving, where each row may see another delta, has its own in `app.engine.bank_overlay`; both
feed the same encoder.

Legend: T lines of x (tokens or rows), K selected values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
class _Piece:
    """Lines start..stop of a site's matrix that are computed in one go.

    Attributes:
        parts: Hugging Face names stacked here.
        start: first line in the stacked matrix.
        stop: line after the last.
        kind: "frozen", "dense" or "sparse": whose values are used.
        patched: sparse only, a copy of the frozen lines that carries the selected values.
        indices: sparse only, int64 [K] positions in `patched`, flattened.
        offsets: sparse embedding tables only, int64 [V + 1]: where each table line's values begin.
    """

    parts: tuple[str, ...]
    start: int
    stop: int
    kind: str
    patched: Tensor | None = None
    indices: Tensor | None = None
    offsets: Tensor | None = None


class TrainableOverlay(Overlay):
    """The overlay of one delta, differentiable with respect to the entries' values.

    Args:
        backbone: whose weights show where no entry lies.
        entries: by Hugging Face name; their values may require gradients.
        device: where to compute.
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
        self._pieces = {
            name: self._plan(name) for name, weight in self._frozen.items() if weight.ndim == 2
        }
        self._vectors: dict[str, Tensor] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take up the entries' present values; call before each forward pass after they changed."""
        for name, frozen in self._frozen.items():
            if frozen.ndim == 1:
                self._vectors[name] = self._vector(name, frozen)
        with torch.no_grad():
            for pieces in self._pieces.values():
                for piece in pieces:
                    if piece.patched is not None and piece.indices is not None:
                        values = self._sparse_values(piece).to(piece.patched.dtype)
                        piece.patched.view(-1)[piece.indices] = values

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [T] in the table at `site`: [T, H]."""
        (piece,) = self._pieces[f"{site}.weight"]
        if piece.kind == "sparse":
            values = self._sparse_values(piece)
            found: Tensor = _SparseEmbedding.apply(  # type: ignore[no-untyped-call]
                ids, values, piece.patched, piece.indices, piece.offsets
            )
            return found
        return F.embedding(ids, self._matrix(f"{site}.weight", piece))

    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Multiply x [T, in] by the site's matrix, add its bias: [T, out]."""
        del per_position  # all rows see the same values
        pieces = self._pieces[f"{site}.weight"]
        bias = self._vectors[f"{site}.bias"]
        outs = []
        for piece in pieces:
            part = bias if len(pieces) == 1 else bias[piece.start : piece.stop]
            if piece.kind == "sparse":
                values = self._sparse_values(piece)
                shifted = _SparseLinear.apply(x, part, values, piece.patched, piece.indices)  # type: ignore[no-untyped-call]
                outs.append(shifted)
            else:
                outs.append(F.linear(x, self._matrix(f"{site}.weight", piece), part))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)

    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Normalise x [T, H] with the site's LayerNorm."""
        del per_position
        weight, bias = self._vectors[f"{site}.weight"], self._vectors[f"{site}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self._eps)

    def _plan(self, name: str) -> list[_Piece]:
        """Cut a stacked matrix where the kind of its parts changes: frozen parts stay frozen."""
        pieces: list[_Piece] = []
        start = 0
        for part in self._layout[name]:
            entry = self.entries.get(part)
            kind = (
                "frozen"
                if entry is None
                else "dense"
                if isinstance(entry, DenseEntry)
                else "sparse"
            )
            stop = start + self._sizes[part]
            if pieces and pieces[-1].kind == kind:
                pieces[-1].parts += (part,)
                pieces[-1].stop = stop
            else:
                pieces.append(_Piece((part,), start, stop, kind))
            start = stop
        for piece in pieces:
            if piece.kind == "sparse":
                self._prepare_sparse(name, piece)
        return pieces

    def _prepare_sparse(self, name: str, piece: _Piece) -> None:
        frozen = self._frozen[name]
        piece.patched = frozen[piece.start : piece.stop].clone()
        columns = frozen.shape[1]
        shifted, lines = [], 0
        for part in piece.parts:
            entry = self.entries[part]
            assert isinstance(entry, SparseEntry)
            shifted.append(entry.indices.to(frozen.device) + lines * columns)
            lines += self._sizes[part]
        piece.indices = torch.cat(shifted)
        if name.startswith("embeddings."):
            table_lines = torch.arange(lines + 1, device=frozen.device)
            piece.offsets = torch.searchsorted(piece.indices, table_lines * columns)

    def _sparse_values(self, piece: _Piece) -> Tensor:
        values = [self.entries[part].values for part in piece.parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def _matrix(self, name: str, piece: _Piece) -> Tensor:
        frozen = self._frozen[name]
        if piece.kind == "frozen":
            whole = (piece.start, piece.stop) == (0, frozen.shape[0])
            return frozen if whole else frozen[piece.start : piece.stop]
        values = [self.entries[part].values.to(frozen.dtype) for part in piece.parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def _vector(self, name: str, frozen: Tensor) -> Tensor:
        parts = self._layout[name]
        if not any(part in self.entries for part in parts):
            return frozen
        pieces = torch.split(frozen, [self._sizes[part] for part in parts])
        resolved = [
            self.entries[part].resolve(piece) if part in self.entries else piece
            for part, piece in zip(parts, pieces, strict=True)
        ]
        return resolved[0] if len(resolved) == 1 else torch.cat(resolved)


class _SparseLinear(torch.autograd.Function):
    """y = x W^T + b, where K values v of W are trained.

    dL/dv_k is the sum over T of dL/dy[:, row_k] x[:, column_k].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, values: Tensor, patched: Tensor, indices: Tensor
    ) -> Tensor:
        del (
            values
        )  # already laid into `patched`; an argument so that autograd asks for its gradient
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
    """Rows of a table of which K values are trained; the gradient visits only rows that occur."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, values: Tensor, patched: Tensor, indices: Tensor, offsets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(ids, indices, offsets)
        ctx.num_values = len(values)
        return F.embedding(ids, patched)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # [T, H]
        ids, indices, offsets = ctx.saved_tensors
        counts = offsets[ids + 1] - offsets[ids]  # [T] trained values in each token's row
        token = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
        within = torch.arange(len(token), device=ids.device) - (counts.cumsum(0) - counts)[token]
        position = offsets[ids][token] + within  # which of the K values each pair is about
        products = grad[token, indices[position] % grad.shape[1]].float()
        total = torch.zeros(ctx.num_values, device=grad.device).index_add_(0, position, products)
        return None, total, None, None, None
