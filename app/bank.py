"""The bank: overlays of many deltas stacked in device memory, and the overlay that mixes them.

Slot 0 is the backbone itself. Vectors (biases, LayerNorms) are stacked, one line for each slot that
has any of its own, so a batch gathers each row's. A matrix is shared by all slots: one GEMM serves
every row; slots with sparse entries have their values laid into a spare copy of it while their rows
run; slots with a whole matrix of their own run their rows through that. Rows of such a slot lie
side by side in the batch, so that all of this works on views. But for the spare copies, which are
restored at once, nothing here is ever written while a batch runs, and no "current task" exists:
each row carries its slot.

Legend: S slots, N tokens, R rows, T lines of x (tokens or rows), K selected values of one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import Backbone, Delta, DenseEntry, PackedBatch, SparseEntry, encoder_layout

_FIRST_ROOM = 64  # lines


@dataclass(frozen=True)
class _SparseSlot:
    """A slot's own values in one matrix or table that it otherwise shares.

    Attributes:
        places: int64 [K], flat positions, increasing.
        values: [K], what the slot has there.
        frozen: [K], what the backbone has there.
    """

    places: Tensor
    values: Tensor
    frozen: Tensor


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
        # Line 0 is the backbone's. Behind the lines in use there is room for more.
        self.vectors = {
            name: weight[None] for name, weight in self.frozen.items() if weight.ndim == 1
        }
        self._room = dict(self.vectors)
        self.line_of: list[int] = [0]  # each slot's line in the vectors
        self.matrices: dict[str, dict[int, Tensor]] = {name: {} for name in self.frozen}
        self.sparse: dict[str, dict[int, _SparseSlot]] = {name: {} for name in self.frozen}
        # Copies of frozen matrices, into which a sparse slot's values are laid while its rows run.
        self.spare: dict[str, Tensor] = {}
        self.heads: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))]
        self.matrix_slots: set[int] = set()  # slots with more than vectors and a head

    @property
    def num_slots(self) -> int:
        """How many slots there are, slot 0 included."""
        return len(self.heads)

    def add(self, deltas: Sequence[Delta]) -> list[int]:
        """Give each delta a slot; returns the slots in order. Never call it while a batch runs."""
        first = self.num_slots
        for slot, delta in enumerate(deltas, start=first):
            has_vectors = any(len(info.shape) == 1 for info in delta.manifest.entries)
            self.line_of.append(self._add_vectors(delta) if has_vectors else 0)
            for name, weight in self.frozen.items():
                if weight.ndim == 2:
                    self._add_matrix(name, slot, delta)
            head = (delta.head_weight, delta.head_bias)
            # Heads are small and read last: they stay float32, so no label flips because of them.
            self.heads.append((head[0].clone().to(self.device), head[1].clone().to(self.device)))
        return list(range(first, self.num_slots))

    def _add_vectors(self, delta: Delta) -> int:
        """Write all vectors as the delta has them into the next line; returns which that is."""
        line = len(next(iter(self.vectors.values())))
        for name, vectors in self.vectors.items():
            if line == len(self._room[name]):
                # Doubling makes growth rare; room that was never written to takes no memory.
                self._room[name] = vectors.new_empty(max(_FIRST_ROOM, 2 * line), vectors.shape[1])
                self._room[name][:line] = vectors
            start = 0
            for part in self._layout[name]:
                frozen = self._backbone.parameters[part]
                entry = delta.entries.get(part)
                values = frozen if entry is None else entry.resolve(frozen)
                self._room[name][line, start : start + len(values)] = values
                start += len(values)
            self.vectors[name] = self._room[name][: line + 1]
        return line

    def _add_matrix(self, name: str, slot: int, delta: Delta) -> None:
        parts = self._layout[name]
        entries = [delta.entries.get(part) for part in parts]
        if any(isinstance(entry, DenseEntry) for entry in entries):
            whole = [
                self._backbone.parameters[part]
                if entry is None
                else entry.resolve(self._backbone.parameters[part])
                for part, entry in zip(parts, entries, strict=True)
            ]
            self.matrix_slots.add(slot)
            self.matrices[name][slot] = torch.cat(whole).to(self.device, self.dtype)
        elif any(isinstance(entry, SparseEntry) for entry in entries):
            self.matrix_slots.add(slot)
            self.sparse[name][slot] = self._sparse_slot(parts, delta)
            if name not in self.spare and not name.startswith("embeddings."):
                self.spare[name] = self.frozen[name].clone()

    def _sparse_slot(self, parts: Sequence[str], delta: Delta) -> _SparseSlot:
        places, values, frozen = [], [], []
        above = 0
        for part in parts:
            parameter = self._backbone.parameters[part]
            entry = delta.entries.get(part)
            if isinstance(entry, SparseEntry):
                places.append(entry.indices + above)
                values.append(entry.values)
                frozen.append(parameter.reshape(-1)[entry.indices])
            above += parameter.numel()
        return _SparseSlot(
            places=torch.cat(places).to(self.device),
            values=torch.cat(values).to(self.device, self.dtype),
            frozen=torch.cat(frozen).to(self.device, self.dtype),
        )


class BankOverlay:
    """What one packed batch sees of the bank: each row its own slot.

    Args:
        bank: the slots.
        batch: packed rows; those of a slot in `bank.matrix_slots` lie side by side.
        slots: each *packed* row's slot.
    """

    def __init__(self, bank: Bank, batch: PackedBatch, slots: Sequence[int]) -> None:
        self._bank = bank
        lines = [bank.line_of[slot] for slot in slots]
        self._row_lines = torch.tensor(lines, device=bank.device)
        self._token_lines = self._row_lines.repeat_interleave(batch.lengths)
        self._rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            self._rows.setdefault(slot, []).append(row)
        starts = [*batch.first.tolist(), len(batch.input_ids)]
        # Lines of each slot that has more than vectors, as (start, stop): of tokens, of rows.
        self._spans: dict[bool, dict[int, tuple[int, int]]] = {False: {}, True: {}}
        for slot, rows in self._rows.items():
            if slot in bank.matrix_slots:
                first, stop = rows[0], rows[-1] + 1
                if stop - first != len(rows):
                    raise ValueError(f"rows of slot {slot} don't lie side by side: {rows}")
                self._spans[True][slot] = first, stop
                self._spans[False][slot] = starts[first], starts[stop]

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
        lines = self._row_lines if per_row else self._token_lines
        # The GEMM accumulates onto the gathered biases: no broadcast, no second pass.
        out = torch.index_select(self._bank.vectors[f"{site}.bias"], 0, lines)
        frozen = self._bank.frozen[name]
        done = 0
        for own, start, stop in self._own(name, per_row=per_row):
            _accumulate(out[done:start], x[done:start], frozen)
            if isinstance(own, Tensor):
                _accumulate(out[start:stop], x[start:stop], own)
            else:
                with _laid_in(self._bank.spare[name], own) as matrix:
                    _accumulate(out[start:stop], x[start:stop], matrix)
            done = stop
        _accumulate(out[done:], x[done:], frozen)
        return out

    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [T, H], then scale and shift each line by its slot's LayerNorm."""
        lines = self._row_lines if per_row else self._token_lines
        out = F.layer_norm(x, (x.shape[-1],), None, None, self._bank.eps)
        out *= torch.index_select(self._bank.vectors[f"{site}.weight"], 0, lines)
        out += torch.index_select(self._bank.vectors[f"{site}.bias"], 0, lines)
        return out

    def head(self, pooled: Tensor) -> list[Tensor]:
        """Each packed row's float32 logits [C], C being its own task's; pooled is [R, H]."""
        pooled = pooled.float()
        logits: list[Tensor] = [pooled] * len(pooled)
        for slot, rows in self._rows.items():
            weight, bias = self._bank.heads[slot]
            for row, values in zip(rows, F.linear(pooled[rows], weight, bias), strict=True):
                logits[row] = values
        return logits

    def _own(self, name: str, *, per_row: bool) -> list[tuple[Tensor | _SparseSlot, int, int]]:
        """What slots of this batch have of their own there, with their lines, in line order."""
        matrices, sparse = self._bank.matrices[name], self._bank.sparse[name]
        found: list[tuple[Tensor | _SparseSlot, int, int]] = []
        for slot, span in self._spans[per_row].items():
            if slot in matrices:
                found.append((matrices[slot], *span))
            elif slot in sparse:
                found.append((sparse[slot], *span))
        return sorted(found, key=lambda item: item[1])


@contextmanager
def _laid_in(spare: Tensor, sparse: _SparseSlot) -> Iterator[Tensor]:
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


def _accumulate(out: Tensor, x: Tensor, matrix: Tensor) -> None:
    if len(x):
        out.addmm_(x, matrix.t())


def _lay_into_embedding(out: Tensor, ids: Tensor, sparse: _SparseSlot) -> None:
    """Overwrite looked-up values where their token's table line has selected ones."""
    width = out.shape[1]
    lines = sparse.places // width
    low = torch.searchsorted(lines, ids)
    counts = torch.searchsorted(lines, ids, right=True) - low
    which = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
    within = torch.arange(len(which), device=ids.device) - (counts.cumsum(0) - counts)[which]
    position = low[which] + within
    out[which, sparse.places[position] % width] = sparse.values[position]
