"""A few values of its own that a delta has in a matrix which it otherwise shares.

Two ways to multiply lines by such a matrix: by a copy with the values in it, whose cost is in
making it ready, whatever the number of lines; or by the frozen matrix, which serves everybody's
lines, and `deltas.kernels.epilogue` adds what is missing: K products and sums a line.

Legend: T lines of x, K selected values of a matrix [O, I].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deltas.kernels.epilogue import SparseUpdate, sparse_update

BYTES_A_VALUE = 12  # of a sparse slot: row, column and difference


@dataclass(frozen=True)
class SparseWeights:
    """A slot's own values in one matrix or table.

    Attributes:
        rows: int32 [K], increasing.
        columns: int32 [K], increasing within a row.
        differences: float32 [K], from the frozen values in the bank's dtype to the slot's own.
        most_in_row: how many values a row has at most.
    """

    rows: Tensor
    columns: Tensor
    differences: Tensor
    most_in_row: int

    @classmethod
    def of(
        cls, places: Tensor, values: Tensor, frozen: Tensor, dtype: torch.dtype
    ) -> SparseWeights:
        """Values at flat places of a matrix.

        Args:
            places: int64 [K], increasing.
            values: float32 [K].
            frozen: float32 [O, I], on the host.
            dtype: the bank's.
        """
        width = frozen.shape[1]
        differences = values - frozen.reshape(-1)[places].to(dtype).float()
        rows = places // width
        most_in_row = int(rows.bincount().max()) if len(rows) else 0
        return cls(rows.int(), (places % width).int(), differences, most_in_row)

    def to(self, device: torch.device) -> SparseWeights:
        """The same on a device."""
        rows, columns, differences = self.rows, self.columns, self.differences
        return SparseWeights(
            rows.to(device), columns.to(device), differences.to(device), self.most_in_row
        )

    @cached_property
    def update(self) -> SparseUpdate:
        """Pointers to the values, which the epilogue's kernel reads on a CPU."""
        return sparse_update(self.rows, self.columns, self.differences)

    def merged_with(self, frozen: Tensor) -> Tensor:
        """A copy of the frozen matrix with the slot's values in it."""
        merged = frozen.clone(memory_format=torch.contiguous_format)
        own = self.rows.long() * frozen.shape[1] + self.columns
        flat = merged.view(-1)
        flat[own] = (flat[own] + self.differences).to(flat.dtype)
        return merged

    def add_to_embedded(self, out: Tensor, ids: Tensor, lines: Tensor) -> None:
        """Add what is missing of what was looked up in the frozen table.

        Args:
            out: [T, I], what was looked up.
            ids: int64 [T].
            lines: int64, which lines are the slot's.
        """
        asked = ids[lines].int()
        first = torch.searchsorted(self.rows, asked)
        end = torch.searchsorted(self.rows, asked, right=True)
        if ids.device.type == "cpu":
            self._add_each(out, lines, first, end - first)
        else:
            self._add_filled_up(out, lines, first, end)

    def _add_each(self, out: Tensor, lines: Tensor, first: Tensor, counts: Tensor) -> None:
        """Add so many values from a first one on to each line, one by one."""
        which = torch.arange(len(lines), device=lines.device).repeat_interleave(counts)
        within = torch.arange(len(which), device=lines.device) - (counts.cumsum(0) - counts)[which]
        place = first[which] + within
        own = lines[which], self.columns[place].long()  # no place comes twice
        out[own] = (out[own] + self.differences[place]).to(out.dtype)

    def _add_filled_up(self, out: Tensor, lines: Tensor, first: Tensor, end: Tensor) -> None:
        """The same with as many places for each line as the fullest row needs.

        To ask a GPU how many there are it would have to finish all that it does first.
        """
        place = first[:, None] + torch.arange(self.most_in_row, device=lines.device)
        is_own = place < end[:, None]
        place = place.clamp(max=len(self.rows) - 1)
        added = torch.zeros(len(lines), out.shape[1], device=out.device)
        added.scatter_add_(1, self.columns[place].long(), self.differences[place] * is_own)
        out[lines] = (out[lines] + added).to(out.dtype)
