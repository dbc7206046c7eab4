"""Sparse updates of a shared weight matrix: a few trained values of one slot.

A product with such a matrix is computed in one of two ways. `SparseWeights.merged_with` copies the
matrix, which costs the same for any number of rows. Or all rows are multiplied by the frozen matrix
and `deltas.kernels.epilogue` adds the difference, at K multiplications and additions a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deltas.kernels.epilogue import SparseUpdate, sparse_update

BYTES_PER_VALUE = 12  # row, column and difference of a sparse value


@dataclass(frozen=True)
class SparseWeights:
    """The trained values of one slot in one matrix or table [O, I]."""

    rows: Tensor  # int32 [K], increasing
    columns: Tensor  # int32 [K], increasing within a row
    differences: Tensor  # float32 [K], trained value minus the frozen value in the bank's dtype
    most_in_row: int  # largest number of values in a row

    @classmethod
    def of(
        cls, indices: Tensor, values: Tensor, frozen: Tensor, dtype: torch.dtype
    ) -> SparseWeights:
        """Make the update that sets values of a frozen matrix.

        Args:
            indices: int64 [K], flat indices, increasing.
            values: float32 [K], trained values.
            frozen: float32 [O, I], on the host.
            dtype: dtype of the bank.
        """
        width = frozen.shape[1]
        differences = values - frozen.reshape(-1)[indices].to(dtype).float()
        rows = indices // width
        most_in_row = int(rows.bincount().max()) if len(rows) else 0
        return cls(rows.int(), (indices % width).int(), differences, most_in_row)

    def to(self, device: torch.device) -> SparseWeights:
        """Return the update on a device."""
        rows, columns = self.rows.to(device), self.columns.to(device)
        return SparseWeights(rows, columns, self.differences.to(device), self.most_in_row)

    @cached_property
    def update(self) -> SparseUpdate:
        """Pointers to the values, which the epilogue's kernel reads on a CPU."""
        return sparse_update(self.rows, self.columns, self.differences)

    def merged_with(self, frozen: Tensor) -> Tensor:
        """Return a copy of the frozen matrix with the trained values in it."""
        merged = frozen.clone(memory_format=torch.contiguous_format)
        indices = self.rows.long() * frozen.shape[1] + self.columns
        flat = merged.view(-1)
        flat[indices] = (flat[indices] + self.differences).to(flat.dtype)
        return merged

    def add_to_embedded(self, out: Tensor, ids: Tensor, tokens: Tensor) -> None:
        """Add the differences to rows that were looked up in the frozen table.

        Args:
            out: [N, I], rows of the frozen table.
            ids: int64 [N], indices of these rows.
            tokens: int64, indices of the tokens that belong to the slot.
        """
        wanted = ids[tokens].int()
        first = torch.searchsorted(self.rows, wanted)
        end = torch.searchsorted(self.rows, wanted, right=True)
        if ids.device.type == "cpu":
            self._add_values(out, tokens, first, end - first)
        else:
            self._add_padded(out, tokens, first, end)

    def _add_values(self, out: Tensor, tokens: Tensor, first: Tensor, counts: Tensor) -> None:
        """Add the values one by one: `counts` of them to each token, from `first` on."""
        token = torch.arange(len(tokens), device=tokens.device).repeat_interleave(counts)
        within = torch.arange(len(token), device=tokens.device) - (counts.cumsum(0) - counts)[token]
        index = first[token] + within
        target = tokens[token], self.columns[index].long()  # distinct, so that += adds all
        out[target] = (out[target] + self.differences[index]).to(out.dtype)

    def _add_padded(self, out: Tensor, tokens: Tensor, first: Tensor, end: Tensor) -> None:
        """Add `most_in_row` values to each token, zeros behind its last value.

        Counting the values would make the host wait for the GPU.
        """
        index = first[:, None] + torch.arange(self.most_in_row, device=tokens.device)
        is_value = index < end[:, None]
        index = index.clamp(max=len(self.rows) - 1)
        added = torch.zeros(len(tokens), out.shape[1], device=out.device)
        added.scatter_add_(1, self.columns[index].long(), self.differences[index] * is_value)
        out[tokens] = (out[tokens] + added).to(out.dtype)
