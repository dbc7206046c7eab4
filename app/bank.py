"""The bank: overlays of many deltas stacked in device memory, one slot each.

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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas import Backbone, Delta, DenseEntry, SparseEntry, encoder_layout

_FIRST_ROOM = 64  # lines


@dataclass(frozen=True)
class SparseSlot:
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
        self.sparse: dict[str, dict[int, SparseSlot]] = {name: {} for name in self.frozen}
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

    def run_products(self, sizes: Sequence[int]) -> int:
        """Multiply so many lines of zeros by a matrix of every shape; returns how many products."""
        matrices = {
            weight.shape: weight
            for name, weight in self.frozen.items()
            if weight.ndim == 2 and not name.startswith("embeddings.")
        }
        with torch.inference_mode():
            for (height, width), matrix in matrices.items():
                x, out = (matrix.new_zeros(max(sizes), columns) for columns in (width, height))
                for size in sizes:
                    out[:size].addmm_(x[:size], matrix.t())
        return len(matrices) * len(sizes)

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

    def _sparse_slot(self, parts: Sequence[str], delta: Delta) -> SparseSlot:
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
        return SparseSlot(
            places=torch.cat(places).to(self.device),
            values=torch.cat(values).to(self.device, self.dtype),
            frozen=torch.cat(frozen).to(self.device, self.dtype),
        )
