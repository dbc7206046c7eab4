"""The bank: overlays of many deltas stacked in device memory, and the overlay that mixes them.

Slot 0 is the backbone itself. Vectors (biases, LayerNorms) of all slots are stacked, so a batch
gathers each line's own. A matrix is shared by all slots: one GEMM serves every row; slots with
sparse entries add a correction, slots with a whole matrix of their own run their rows through that.
Nothing here is ever written while a batch runs, and no "current task" exists: each row carries its
slot.

Legend: S slots, N tokens, R rows, T lines of x (tokens or rows), K selected values of one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import Backbone, Delta, DenseEntry, PackedBatch, SparseEntry, encoder_layout

Part = TypeVar("Part")

# Share of a matrix from which on a slot has a whole one of its own. Adding K values costs T x K in
# memory and time; measured, 1,024 tokens take 17 ms at 0.001 of a 384 x 1536 matrix, 43 ms at 0.01,
# and 8 ms by a matrix of their own.
_MOST_SPARSE = 0.005


@dataclass(frozen=True)
class _SparseSlot:
    """A slot's sparse part of one matrix: what to add to the frozen values at K places.

    Attributes:
        lines: int64 [K], output (or table line) of each value, increasing.
        columns: int64 [K].
        shifts: [K], selected minus frozen value; computed in float32.
        values: [K], the selected values themselves.
    """

    lines: Tensor
    columns: Tensor
    shifts: Tensor
    values: Tensor


class Bank:
    """Overlays of the served deltas.

    Args:
        backbone: the frozen weights; copied to the device once.
        device: where the bank lives.
        dtype: of all computation.
    """

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.eps = backbone.config.layer_norm_eps
        self._backbone = backbone
        self._layout = encoder_layout(backbone.config)
        # A float32 weight on the CPU stays the backbone's own memory: nothing is held twice.
        self.frozen = {name: weight.to(device, dtype) for name, weight in backbone.weights.items()}
        self.vectors = {
            name: weight[None] for name, weight in self.frozen.items() if weight.ndim == 1
        }
        self.matrices: dict[str, dict[int, Tensor]] = {name: {} for name in self.frozen}
        self.sparse: dict[str, dict[int, _SparseSlot]] = {name: {} for name in self.frozen}
        self.heads: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))]

    @property
    def num_slots(self) -> int:
        """How many slots there are, slot 0 included."""
        return len(self.heads)

    def add(self, deltas: Sequence[Delta]) -> list[int]:
        """Give each delta a slot; returns the slots in order. Never call it while a batch runs."""
        first = self.num_slots
        for name, stacked in self.vectors.items():
            new = [self._vector(name, delta).to(self.device, self.dtype) for delta in deltas]
            self.vectors[name] = torch.cat([stacked, torch.stack(new)]) if new else stacked
        for slot, delta in enumerate(deltas, start=first):
            for name, weight in self.frozen.items():
                if weight.ndim == 2:
                    self._add_matrix(name, slot, delta)
            head = (delta.head_weight, delta.head_bias)
            # Heads are small and read last: they stay float32, so no label flips because of them.
            self.heads.append((head[0].clone().to(self.device), head[1].clone().to(self.device)))
        return list(range(first, self.num_slots))

    def _vector(self, name: str, delta: Delta) -> Tensor:
        parts = []
        for part in self._layout[name]:
            frozen = self._backbone.parameters[part]
            entry = delta.entries.get(part)
            parts.append(frozen if entry is None else entry.resolve(frozen))
        return torch.cat(parts)

    def _add_matrix(self, name: str, slot: int, delta: Delta) -> None:
        parts = self._layout[name]
        entries = [delta.entries.get(part) for part in parts]
        num_sparse = sum(
            entry.values.numel() for entry in entries if isinstance(entry, SparseEntry)
        )
        is_thin = num_sparse <= _MOST_SPARSE * self.frozen[name].numel()
        if not is_thin or any(isinstance(entry, DenseEntry) for entry in entries):
            whole = [
                self._backbone.parameters[part]
                if entry is None
                else entry.resolve(self._backbone.parameters[part])
                for part, entry in zip(parts, entries, strict=True)
            ]
            self.matrices[name][slot] = torch.cat(whole).to(self.device, self.dtype)
        elif num_sparse:
            self.sparse[name][slot] = self._sparse_slot(parts, delta)

    def _sparse_slot(self, parts: Sequence[str], delta: Delta) -> _SparseSlot:
        lines, columns, frozen_values, values = [], [], [], []
        above = 0
        for part in parts:
            parameter = self._backbone.parameters[part]
            entry = delta.entries.get(part)
            if isinstance(entry, SparseEntry):
                lines.append(entry.indices // parameter.shape[1] + above)
                columns.append(entry.indices % parameter.shape[1])
                frozen_values.append(parameter.reshape(-1)[entry.indices])
                values.append(entry.values)
            above += parameter.shape[0]
        selected = torch.cat(values)
        shifts = selected - torch.cat(frozen_values)
        return _SparseSlot(
            lines=torch.cat(lines).to(self.device),
            columns=torch.cat(columns).to(self.device),
            shifts=shifts.to(self.device, self.dtype),
            values=selected.to(self.device, self.dtype),
        )


class BankOverlay:
    """What one packed batch sees of the bank: each row its own slot.

    Args:
        bank: the slots.
        batch: packed rows.
        slots: each *packed* row's slot.
    """

    def __init__(self, bank: Bank, batch: PackedBatch, slots: Sequence[int]) -> None:
        self._bank = bank
        self._row_slots = torch.tensor(slots, device=bank.device)
        self._token_slots = self._row_slots.repeat_interleave(batch.lengths)
        self._used = sorted(set(slots))
        self._lines: dict[tuple[int, bool], Tensor] = {}

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [N] in the table at `site`, each in its row's slot: [N, H]."""
        name = f"{site}.weight"
        out = F.embedding(ids, self._bank.frozen[name])
        for slot, table in self._present(self._bank.matrices[name]):
            lines = self._lines_of(slot, per_row=False)
            out[lines] = F.embedding(ids[lines], table)
        for slot, sparse in self._present(self._bank.sparse[name]):
            _lay_into_embedding(out, ids, self._lines_of(slot, per_row=False), sparse)
        return out

    def linear(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Multiply x [T, in] by each line's own matrix at `site`, add its bias: [T, out]."""
        name = f"{site}.weight"
        slots = self._row_slots if per_row else self._token_slots
        # The GEMM accumulates onto the gathered biases: no broadcast, no second pass.
        out = torch.index_select(self._bank.vectors[f"{site}.bias"], 0, slots)
        dense = self._present(self._bank.matrices[name])
        biases = [out[self._lines_of(slot, per_row=per_row)] for slot, _ in dense]
        if sum(map(len, biases)) < len(x):
            out.addmm_(x, self._bank.frozen[name].t())
        for (slot, matrix), bias in zip(dense, biases, strict=True):
            lines = self._lines_of(slot, per_row=per_row)
            out[lines] = bias.addmm_(x[lines], matrix.t())
        for slot, sparse in self._present(self._bank.sparse[name]):
            lines = self._lines_of(slot, per_row=per_row)
            shift = x.new_zeros(len(lines), out.shape[1])
            shift.index_add_(1, sparse.lines, x[lines][:, sparse.columns] * sparse.shifts)
            out[lines] += shift
        return out

    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [T, H], then scale and shift each line by its slot's LayerNorm."""
        slots = self._row_slots if per_row else self._token_slots
        out = F.layer_norm(x, (x.shape[-1],), None, None, self._bank.eps)
        out *= torch.index_select(self._bank.vectors[f"{site}.weight"], 0, slots)
        out += torch.index_select(self._bank.vectors[f"{site}.bias"], 0, slots)
        return out

    def head(self, pooled: Tensor) -> list[Tensor]:
        """Each packed row's float32 logits [C], C being its own task's; pooled is [R, H]."""
        pooled = pooled.float()
        logits: list[Tensor] = [pooled] * len(pooled)
        for slot in self._used:
            weight, bias = self._bank.heads[slot]
            rows = self._lines_of(slot, per_row=True)
            for row, values in zip(
                rows.tolist(), F.linear(pooled[rows], weight, bias), strict=True
            ):
                logits[row] = values
        return logits

    def _present(self, by_slot: Mapping[int, Part]) -> list[tuple[int, Part]]:
        return [(slot, by_slot[slot]) for slot in self._used if slot in by_slot]

    def _lines_of(self, slot: int, *, per_row: bool) -> Tensor:
        """Positions of a slot's tokens or rows in the batch, found once."""
        key = (slot, per_row)
        if key not in self._lines:
            slots = self._row_slots if per_row else self._token_slots
            self._lines[key] = (slots == slot).nonzero()[:, 0]
        return self._lines[key]


def _lay_into_embedding(out: Tensor, ids: Tensor, lines: Tensor, sparse: _SparseSlot) -> None:
    """Overwrite looked-up values of `lines` where their token's table line has selected ones."""
    wanted = ids[lines]
    low = torch.searchsorted(sparse.lines, wanted)
    counts = torch.searchsorted(sparse.lines, wanted, right=True) - low
    which = torch.arange(len(lines), device=ids.device).repeat_interleave(counts)
    within = torch.arange(len(which), device=ids.device) - (counts.cumsum(0) - counts)[which]
    position = low[which] + within
    out[lines[which], sparse.columns[position]] = sparse.values[position]
