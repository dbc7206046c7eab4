"""The bank: overlays of many deltas stacked in device memory, one slot each.

Slot 0 is the backbone itself. Vectors (biases, LayerNorms) are stacked, one line for each slot that
has any of its own, so a batch gathers each row's. A matrix is shared by all slots: one GEMM serves
every row, and what slots with sparse entries have of their own is added (`app.engine.sparse`); slots with
a whole matrix of their own run their rows through that. Rows of such a slot lie side by side in the
batch, so that all of this works on views. What a running batch reads is never written, and no
"current task" exists: each row carries its slot. Which delta has a slot, and which gives way, is
for `app.engine.cache` to say.

Legend: S slots, N tokens, R rows, T lines of x (tokens or rows), K selected values of one matrix.

Vectors of many deltas, stacked: one table for each vector of the encoder, one line a delta.

Line 0 is the backbone's. A line that is given back is used again; behind the lines in use there is
room for more.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.sparse import BYTES_A_VALUE, SparseWeights
from deltas import Backbone, Delta, DenseEntry, Entry, SparseEntry, encoder_layout
from deltas.kernels.int8 import Int8Matrix
from deltas.kernels.linear import prepack

_FIRST_ROOM = 64  # lines


class Lines:
    """Tables of some of the encoder's vectors, that a delta has lines in all of or in none.

    Args:
        frozen: the backbone's vectors by name, on the device and in the dtype of the tables.

    Attributes:
        tables: by name, the lines that are or were in use.
        room: the same with what is free behind them; there they stay until there is no room left.
        moves: how often they had to move; who knows their places must look again then.
    """

    def __init__(self, frozen: Mapping[str, Tensor]) -> None:
        self.tables = {name: vector[None] for name, vector in frozen.items()}
        self.room = dict(self.tables)
        self.moves = 0
        self._free: list[int] = []

    def take(self, vectors: Sequence[Tensor]) -> Iterator[int]:
        """Write vectors, each all of a delta's end to end, into free lines; returns which."""
        used, room = (len(next(iter(held.values()))) for held in (self.tables, self.room))
        reused = [self._free.pop() for _ in vectors[: len(self._free)]]
        lines = reused + list(range(used, used + len(vectors) - len(reused)))
        if not lines:
            return iter(())
        if lines[-1] >= room:
            self.reserve(max(_FIRST_ROOM, 2 * lines[-1]))  # doubling makes growth rare
        whole = torch.stack(list(vectors)).to(next(iter(self.tables.values())).device)
        where = torch.tensor(lines, device=whole.device)
        start = 0
        for name, held in self.room.items():
            stop = start + held.shape[1]
            held[where] = whole[:, start:stop]
            self.tables[name] = held[: max(used, lines[-1] + 1)]
            start = stop
        return iter(lines)

    def give_back(self, line: int) -> None:
        """Let the next delta have a line; line 0 is nobody's to give."""
        if line:
            self._free.append(line)

    def reserve(self, num_lines: int) -> None:
        """Make room for so many lines besides the backbone's."""
        if len(next(iter(self.room.values()))) <= num_lines:
            self.moves += 1
            for name, table in self.tables.items():
                self.room[name] = _empty(num_lines + 1, table)
                self.room[name][: len(table)] = table
                self.tables[name] = self.room[name][: len(table)]


def _empty(num_lines: int, like: Tensor) -> Tensor:
    """Room for lines like those of a table; on a CPU what is never written to takes no memory.

    So straight from the system: the C library may hand out memory that was used before.
    """
    shape = num_lines, like.shape[1]
    if like.device.type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return like.new_empty(shape)
    num_bytes = num_lines * like.shape[1] * like.element_size()
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


KINDS = ("bias", "weight")  # of vectors
_NO_HEAD = torch.empty(0), torch.empty(0)


@dataclass(frozen=True)
class StagedDelta:
    """A delta on the host, in the form that goes into a slot.

    Attributes:
        vectors: by kind ("bias", "weight"), all of them end to end as the delta has them, in the
            bank's dtype; a kind of which it has none of its own is left out.
        matrices: whole matrices of its own, by the name of the encoder's weight.
        sparse: selected values, not too many, in matrices that it otherwise shares.
        head_weight: float32 [C, H].
        head_bias: float32 [C].
    """

    vectors: dict[str, Tensor]
    matrices: dict[str, Tensor]
    sparse: dict[str, SparseWeights]
    head_weight: Tensor
    head_bias: Tensor


class Bank:
    """Overlays of the served deltas.

    Args:
        backbone: the frozen weights; copied to the device once.
        device: where the bank lives.
        dtype: of the matrices, and of what they are multiplied with.
        int8: hold the layers' matrices as whole numbers, too.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        dtype: torch.dtype,
        *,
        int8: bool = False,
    ) -> None:
        self.device = device
        self.dtype = dtype
        # On CPUs vectors are read by one kernel, which computes in float32.
        self.vector_dtype = torch.float32 if device.type == "cpu" else dtype
        self.eps = backbone.config.layer_norm_eps
        self._backbone = backbone
        self._layout = encoder_layout(backbone.config)
        # A float32 weight on the CPU stays the backbone's own memory: nothing is held twice.
        self.frozen = {name: weight.to(device, dtype) for name, weight in backbone.weights.items()}
        self.quantised = self._quantise() if int8 else {}
        # The matrices as CPUs multiply by them; a plain one is the same memory.
        self.products = self._make_products() if device.type == "cpu" else {}
        self._num_multiplied = sum(
            weight.numel()
            for name, weight in self.frozen.items()
            if weight.ndim == 2 and _multiplies(name)
        )
        # Biases, and LayerNorms' weights, which few deltas have of their own.
        self.lines = {kind: Lines(self._frozen_vectors(kind)) for kind in KINDS}
        # Each slot's line in the vectors of each kind.
        self.line_of: dict[str, list[int]] = {kind: [0] for kind in KINDS}
        self.matrices: dict[str, dict[int, Tensor]] = {name: {} for name in self.frozen}
        self.sparse: dict[str, dict[int, SparseWeights]] = {name: {} for name in self.frozen}
        self.heads: list[tuple[Tensor, Tensor]] = [_NO_HEAD]
        self.matrix_slots: set[int] = set()  # slots with more than vectors and a head
        # How many values slots without whole matrices have of their own in layers and pooler.
        self._num_sparse: dict[int, int] = {}
        self._free_slots: list[int] = []

    @property
    def num_slots(self) -> int:
        """How many slots are in use, slot 0 included."""
        return len(self.heads) - len(self._free_slots)

    def add(self, deltas: Sequence[Delta]) -> list[int]:
        """Give each delta a slot; returns the slots in order. From one thread at a time."""
        return self.put([self.stage(delta) for delta in deltas])

    def is_apart(self, slot: int) -> bool:
        """Whether a slot's rows need a pass of their own: whole numbers don't fit its matrices."""
        return bool(self.quantised) and slot in self.matrix_slots

    def needs_span(self, slot: int, num_tokens: int) -> bool:
        """Whether so many tokens of a slot must lie side by side in a batch.

        On a CPU a few values of a slot's own are added to each line's products, wherever it lies,
        unless so many lines have so many that merged matrices take less time: a product and a sum
        take about as long as a value of a matrix that is merged.
        """
        if slot not in self.matrix_slots:
            return False
        if self.has_whole_matrices(slot):
            return True
        return num_tokens * self._num_sparse[slot] >= self._num_multiplied

    def has_whole_matrices(self, slot: int) -> bool:
        """Whether a slot in `matrix_slots` has more than a few values of its own."""
        return slot not in self._num_sparse

    def run_products(self, sizes: Sequence[int]) -> int:
        """Multiply so many lines of zeros by a matrix of every shape; returns how many products."""
        products = {self.frozen[name].shape: multiply for name, multiply in self.products.items()}
        with torch.inference_mode():
            for (_, width), multiply in products.items():
                x = torch.zeros(max(sizes), width, dtype=self.dtype)
                for size in sizes:
                    multiply(x[:size])
        return len(products) * len(sizes)

    def stage(self, delta: Delta) -> StagedDelta:
        """Bring a delta into the form of a slot; thread-safe, nothing of the bank changes."""
        vector_names = [info.name for info in delta.manifest.entries if len(info.shape) == 1]
        own = {name.rpartition(".")[2] for name in vector_names}
        vectors = {
            kind: self.lay_out(kind, delta.entries, self._backbone.parameters).to(self.vector_dtype)
            for kind in KINDS
            if kind in own
        }
        matrices: dict[str, Tensor] = {}
        sparse: dict[str, SparseWeights] = {}
        for name, weight in self.frozen.items():
            if weight.ndim == 2:
                parts = self._layout[name]
                entries = [delta.entries[part] for part in parts if part in delta.entries]
                if _are_many(entries, weight):
                    whole = _resolved(parts, delta.entries, self._backbone.parameters)
                    matrices[name] = torch.cat(whole).to(self.dtype)
                elif entries:
                    sparse[name] = self._sparse_slot(name, parts, delta)
        # Heads are small and read last: they stay float32, so no label flips because of them.
        head = delta.head_weight.clone(), delta.head_bias.clone()
        return StagedDelta(vectors, matrices, sparse, *head)

    def lay_out(
        self, kind: str, entries: Mapping[str, Entry], frozen: Mapping[str, Tensor]
    ) -> Tensor:
        """All vectors of a kind end to end in the tables' order: a delta's, else frozen ones."""
        parts = [part for name in self.lines[kind].tables for part in self._layout[name]]
        return torch.cat(_resolved(parts, entries, frozen))

    def vectors(self, name: str) -> Tensor:
        """The table [S or more, O] of a vector: see `line_of` for a slot's line."""
        return self.lines[name.rpartition(".")[2]].room[name]

    @property
    def moves(self) -> int:
        """How often tables of vectors had to move."""
        return sum(held.moves for held in self.lines.values())

    def lines_of(self, slots: Sequence[int]) -> list[list[int]]:
        """The line of each of the slots, by kind in the order of `KINDS`."""
        return [[self.line_of[kind][slot] for slot in slots] for kind in KINDS]

    def _frozen_vectors(self, kind: str) -> dict[str, Tensor]:
        return {
            name: weight.to(self.device, self.vector_dtype)
            for name, weight in self._backbone.weights.items()
            if weight.ndim == 1 and name.endswith(f".{kind}")
        }

    def put(self, staged: Sequence[StagedDelta]) -> list[int]:
        """Give each a slot; returns the slots in order. From one thread at a time."""
        slots = [self._take_slot() for _ in staged]
        for kind, held in self.lines.items():
            lines = held.take([item.vectors[kind] for item in staged if kind in item.vectors])
            for slot, item in zip(slots, staged, strict=True):
                self.line_of[kind][slot] = next(lines) if kind in item.vectors else 0
        for slot, item in zip(slots, staged, strict=True):
            for name, matrix in item.matrices.items():
                self.matrices[name][slot] = matrix.to(self.device)
            for name, sparse in item.sparse.items():
                self.sparse[name][slot] = sparse.to(self.device)
            if item.matrices or item.sparse:
                self.matrix_slots.add(slot)
            if not item.matrices:
                self._num_sparse[slot] = sum(
                    len(sparse.rows) for name, sparse in item.sparse.items() if _multiplies(name)
                )
            self.heads[slot] = item.head_weight.to(self.device), item.head_bias.to(self.device)
        return slots

    def remove(self, slot: int) -> None:
        """Free a slot that no batch reads; what it held is gone. From one thread at a time."""
        for name in self.frozen:
            self.matrices[name].pop(slot, None)
            self.sparse[name].pop(slot, None)
        self.matrix_slots.discard(slot)
        self._num_sparse.pop(slot, None)
        self.heads[slot] = _NO_HEAD
        for kind, held in self.lines.items():
            held.give_back(self.line_of[kind][slot])
            self.line_of[kind][slot] = 0
        self._free_slots.append(slot)

    def reserve(self, num_lines: int) -> None:
        """Make room for the vectors of so many slots besides the backbone's."""
        for held in self.lines.values():
            held.reserve(num_lines)

    def _make_products(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {
            name: prepack(weight)
            for name, weight in self.frozen.items()
            if weight.ndim == 2 and _multiplies(name)
        }

    def _quantise(self) -> dict[str, Int8Matrix]:
        """The layers' matrices as whole numbers; the pooler is too small to gain."""
        return {
            name: Int8Matrix.of(weight)
            for name, weight in self._backbone.weights.items()
            if weight.ndim == 2 and name.startswith("layer.")
        }

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self.heads.append(_NO_HEAD)
        for lines in self.line_of.values():
            lines.append(0)
        return len(self.heads) - 1

    def _sparse_slot(self, name: str, parts: Sequence[str], delta: Delta) -> SparseWeights:
        places, values = [], []
        above = 0
        for part in parts:
            entry = delta.entries.get(part)
            if isinstance(entry, SparseEntry):
                places.append(entry.indices + above)
                values.append(entry.values)
            above += self._backbone.parameters[part].numel()
        return SparseWeights.of(
            torch.cat(places), torch.cat(values), self._backbone.weights[name], self.dtype
        )


def _multiplies(name: str) -> bool:
    """Whether lines are multiplied by a matrix, rather than looked up."""
    return not name.startswith("embeddings.")


def _are_many(entries: Sequence[Entry], frozen: Tensor) -> bool:
    """Whether entries of a matrix take less memory as a whole matrix, like the frozen one."""
    if any(isinstance(entry, DenseEntry) for entry in entries):
        return True
    return sum(entry.values.numel() for entry in entries) * BYTES_A_VALUE > frozen.nbytes


def _resolved(
    parts: Iterable[str], entries: Mapping[str, Entry], frozen: Mapping[str, Tensor]
) -> list[Tensor]:
    """Each part's values: the entry's where there is one."""
    return [
        entries[part].resolve(frozen[part]) if part in entries else frozen[part] for part in parts
    ]
