"""The overlay that mixes deltas: what the rows of one packed batch see of the bank.

Legend: N tokens, P packed rows, T lines of x (tokens or packed rows), R rows, K selected values of
one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from app.bank import KINDS, Bank, SparseSlot
from deltas import Overlay, PackedBatch


class BankOverlay(Overlay):
    """What one packed batch sees of the bank: each row its own slot.

    Args:
        bank: the slots.
        batch: packed rows; those of a slot in `bank.matrix_slots` lie side by side.
        slots: each row's slot, in the order of the input.
    """

    def __init__(self, bank: Bank, batch: PackedBatch, slots: Sequence[int]) -> None:
        self._bank = bank
        # Which line of the bank's vectors, biases and weights, each token and packed row sees.
        lines = [[bank.line_of[kind][slot] for slot in slots] for kind in KINDS]
        by_row = torch.tensor(lines, device=bank.device)
        self._lines = {
            per_row: dict(zip(KINDS, by_row[:, rows], strict=True))
            for per_row, rows in ((False, batch.row_of_token), (True, batch.row_of_packed))
        }
        self._rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            self._rows.setdefault(slot, []).append(row)
        # Lines of each slot that has more than vectors: of tokens, of packed rows.
        own = bank.matrix_slots.intersection(self._rows)
        if not own <= batch.spans.keys():
            raise ValueError(f"rows of slots {sorted(own)} don't lie side by side; pack with keys")
        spans = {slot: batch.spans[slot] for slot in sorted(own)}
        self._spans = {
            False: {slot: (span.tokens.start, span.tokens.stop) for slot, span in spans.items()},
            True: {slot: (span.rows.start, span.rows.stop) for slot, span in spans.items()},
        }

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [N] in the table at `site`, each in its row's slot: [N, H]."""
        name = f"{site}.weight"
        out = F.embedding(ids, self._bank.frozen[name])
        for own, start, stop in self._own(name, per_row=False):
            if isinstance(own, Tensor):
                out[start:stop] = F.embedding(ids[start:stop], own)
            else:
                _lay_into_embedding(out[start:stop], ids[start:stop], own)
        return out

    def linear(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Multiply x [T, in] by each line's own matrix at `site`, add its bias: [T, out]."""
        name = f"{site}.weight"
        # The GEMM accumulates onto the gathered biases: no broadcast, no second pass.
        out = self._gathered(site, "bias", per_row=per_row)
        self.multiply(name, x, out, per_row=per_row)
        return out

    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [T, H], then scale and shift each line by its slot's LayerNorm."""
        out = F.layer_norm(x, (x.shape[-1],), None, None, self._bank.eps)
        scale = self._gathered(site, "weight", per_row=per_row)
        return self._gathered(site, "bias", per_row=per_row).addcmul_(out, scale)

    def head(self, pooled: Tensor) -> list[Tensor]:
        """Each row's float32 logits [C], C being its own task's; pooled is [R, H]."""
        pooled = pooled.float()
        logits: list[Tensor] = [pooled] * len(pooled)
        for slot, rows in self._rows.items():
            weight, bias = self._bank.heads[slot]
            for row, values in zip(rows, F.linear(pooled[rows], weight, bias), strict=True):
                logits[row] = values
        return logits

    def multiply(
        self, name: str, x: Tensor, out: Tensor, *, per_row: bool, overwrite: bool = False
    ) -> None:
        """Add to `out` [T, out], or put there, the product of x [T, in] and each line's matrix."""
        frozen, beta = self._bank.frozen[name], 0 if overwrite else 1
        done = 0
        for own, start, stop in self._own(name, per_row=per_row):
            _multiply(x[done:start], frozen, out[done:start], beta)
            if isinstance(own, Tensor):
                _multiply(x[start:stop], own, out[start:stop], beta)
            else:
                with _laid_in(self._bank.spare[name], own) as matrix:
                    _multiply(x[start:stop], matrix, out[start:stop], beta)
            done = stop
        _multiply(x[done:], frozen, out[done:], beta)

    def _gathered(self, site: str, kind: str, *, per_row: bool) -> Tensor:
        """Each line's own vector at a site: [T, O]."""
        return torch.index_select(
            self._bank.vectors(f"{site}.{kind}"), 0, self._lines[per_row][kind]
        )

    def _own(self, name: str, *, per_row: bool) -> list[tuple[Tensor | SparseSlot, int, int]]:
        """What slots of this batch have of their own there, with their lines, in line order."""
        matrices, sparse = self._bank.matrices[name], self._bank.sparse[name]
        found: list[tuple[Tensor | SparseSlot, int, int]] = []
        for slot, span in self._spans[per_row].items():
            if slot in matrices:
                found.append((matrices[slot], *span))
            elif slot in sparse:
                found.append((sparse[slot], *span))
        return sorted(found, key=lambda item: item[1])


@contextmanager
def _laid_in(spare: Tensor, sparse: SparseSlot) -> Iterator[Tensor]:
    """The frozen matrix with a slot's values in it, for the length of the block.

    K values are written and taken back, whatever the number of rows; adding their products to the
    rows' results would take memory and time in proportion to rows x K.
    """
    flat = spare.view(-1)
    flat.index_copy_(0, sparse.places, sparse.values)
    try:
        yield spare
    finally:
        flat.index_copy_(0, sparse.places, sparse.frozen)


def _multiply(x: Tensor, matrix: Tensor, out: Tensor, beta: int) -> None:
    if len(x):
        out.addmm_(x, matrix.t(), beta=beta)


def _lay_into_embedding(out: Tensor, ids: Tensor, sparse: SparseSlot) -> None:
    """Overwrite looked-up values where their token's table line has selected ones."""
    width = out.shape[1]
    lines = sparse.places // width
    low = torch.searchsorted(lines, ids)
    counts = torch.searchsorted(lines, ids, right=True) - low
    which = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
    within = torch.arange(len(which), device=ids.device) - (counts.cumsum(0) - counts)[which]
    position = low[which] + within
    out[which, sparse.places[position] % width] = sparse.values[position]
