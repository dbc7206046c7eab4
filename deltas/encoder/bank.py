"""The bank: the values of all resident deltas, stacked in device memory, one slot for each delta.

Slot 0 is the bare backbone. Biases and LayerNorm weights are stacked in a `VectorTable`, so that a
batch gathers the vectors of each row's slot. A matrix is shared by all slots: one GEMM serves every
row, and a slot's sparse values are added to it (`deltas.encoder.sparse`). If a slot has a whole
trained matrix, its rows run through that one; they are neighbours in the batch, so that views
suffice.

A running batch never sees a write, and no current task exists: each row carries its slot.
`deltas.encoder.bank_overlay` reads the slots. `app.engine.cache` decides which deltas are in the
bank of a server; a training run judges its delta in a bank with one slot.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.backbone.layout import encoder_layout
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry
from deltas.encoder.encoder import pair_features
from deltas.encoder.sparse import BYTES_PER_VALUE, SparseWeights
from deltas.kernels.int8 import Int8Matrix
from deltas.kernels.linear import prepack

PARAMETER_KINDS = ("bias", "weight")  # of vectors; few deltas train the weights of LayerNorms
_FIRST_CAPACITY = 64  # rows
_NO_HEAD = torch.empty(0), torch.empty(0)


class VectorTable:
    """Trained vectors of one parameter kind: a table for each parameter, a row for each delta.

    A delta has a row in all tables or in none. Row 0 belongs to the backbone and is never freed.

    Args:
        frozen: the backbone's vectors by name, on the device and in the dtype of the tables.

    Attributes:
        capacity: the preallocated tables by parameter name.
        generation: incremented when the tables move; callers that keep data pointers must read
            them again.
    """

    def __init__(self, frozen: Mapping[str, Tensor]) -> None:
        self.capacity = {name: vector[None] for name, vector in frozen.items()}
        self.num_rows = 1  # rows that are or were in use
        self.generation = 0
        self._free_rows: list[int] = []

    def insert(self, vectors: Sequence[Tensor]) -> Iterator[int]:
        """Write each delta's vectors, concatenated in the tables' order, into a free row."""
        rows = [self._free_rows.pop() for _ in vectors[: len(self._free_rows)]]
        rows += range(self.num_rows, self.num_rows + len(vectors) - len(rows))
        if not rows:
            return iter(())
        if rows[-1] >= self._num_allocated:
            self.reserve(max(_FIRST_CAPACITY, 2 * rows[-1]))  # doubling makes growth rare
        self.num_rows = max(self.num_rows, rows[-1] + 1)
        stacked = torch.stack(list(vectors)).to(next(iter(self.capacity.values())).device)
        indices = torch.tensor(rows, device=stacked.device)
        start = 0
        for table in self.capacity.values():
            stop = start + table.shape[1]
            table[indices] = stacked[:, start:stop]
            start = stop
        return iter(rows)

    def free(self, row: int) -> None:
        """Make a row available to the next delta; row 0 always stays the backbone's."""
        if row:
            self._free_rows.append(row)

    def reserve(self, num_rows: int) -> None:
        """Allocate memory for this many rows besides the backbone's."""
        if self._num_allocated <= num_rows:
            self.generation += 1
            for name, table in self.capacity.items():
                grown = _allocate(num_rows + 1, table)
                grown[: self.num_rows] = table[: self.num_rows]
                self.capacity[name] = grown  # at last, since batches of other threads read it

    @property
    def _num_allocated(self) -> int:
        return len(next(iter(self.capacity.values())))


def _allocate(num_rows: int, like: Tensor) -> Tensor:
    """Allocate a table of the same width; on a CPU, rows that are never written take no memory.

    The pages come from the kernel, because the C library may return pages that were used before.
    """
    shape = num_rows, like.shape[1]
    if like.device.type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return like.new_empty(shape)
    num_bytes = num_rows * like.shape[1] * like.element_size()
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


@dataclass(frozen=True)
class Reading:
    """The way in which a delta's head reads a row.

    Attributes:
        mean: whether pooled outputs are means of tokens, of the last layer or of every layer.
        every_layer: whether they are the means of every layer.
        pairs: whether a row is two sequences, of whose vectors the head reads features.
    """

    mean: bool
    every_layer: bool
    pairs: bool

    @classmethod
    def of(cls, pooling: str, pairs: str) -> Reading:
        """Return the reading of a task, see `deltas.manifest.TaskSpec`."""
        return cls(pooling != "cls", pooling == "layers", pairs == "separate")


@dataclass(frozen=True)
class StagedDelta:
    """A delta on the host, in the form that goes into a slot.

    Attributes:
        vectors: all vectors of a parameter kind, concatenated, in the bank's vector dtype; a kind
            that the delta does not train is left out.
        matrices: whole trained matrices, by the name of the encoder's weight.
        sparse: sparse updates of shared matrices, by the name of the encoder's weight.
        head_weight: float32 [C, I]; I is H, 4H for pairs that are read separately, or more for
            the means of every layer.
        head_bias: float32 [C].
        reading: the way in which the head reads a row.
    """

    vectors: dict[str, Tensor]
    matrices: dict[str, Tensor]
    sparse: dict[str, SparseWeights]
    head_weight: Tensor
    head_bias: Tensor
    reading: Reading


class Bank:
    """The slots, and the frozen weights that they share; changed by one thread at a time.

    Args:
        backbone: the frozen weights; copied to the device once.
        device: device of the bank.
        dtype: dtype of the matrices and of the activations.
        int8: whether to hold the layers' matrices in int8, too.

    Attributes:
        frozen: the encoder's weights by name. A float32 weight on a CPU shares the backbone's
            memory.
        int8_matrices: the layers' matrices in int8 by name; empty without int8.
        products: the frozen matrices prepared for multiplication, by name; empty on a GPU.
        vector_tables: trained vectors by parameter kind.
        row_of_slot: each slot's row in the vector table, by parameter kind.
        matrices: whole trained matrices, by weight name and slot.
        sparse: sparse updates of matrices, by weight name and slot.
        heads: weight [C, I] and bias [C] of each slot.
        matrix_slots: slots that train more than vectors and a head.
        mean_slots: slots whose pooled outputs are means, of the last layer or of every layer.
        layers_slots: slots that pool every layer.
        pair_slots: slots whose rows are two sequences each, of which the head reads features.
    """

    def __init__(
        self, backbone: Backbone, device: torch.device, dtype: torch.dtype, *, int8: bool = False
    ) -> None:
        self.device = device
        self.dtype = dtype
        # On CPUs one kernel reads the vectors, and it computes in float32.
        self.vector_dtype = torch.float32 if device.type == "cpu" else dtype
        self.eps = backbone.config.layer_norm_eps
        self._backbone = backbone
        self._layout = encoder_layout(backbone.config)
        self.frozen = {name: weight.to(device, dtype) for name, weight in backbone.weights.items()}
        # The pooler is too small to gain from int8.
        self.int8_matrices = {
            name: Int8Matrix.quantise(weight)
            for name, weight in backbone.weights.items()
            if int8 and weight.ndim == 2 and name.startswith("layer.")
        }
        self.products = {
            name: prepack(weight)
            for name, weight in self.frozen.items()
            if device.type == "cpu" and _is_multiplied(name, weight)
        }
        self._num_multiplied = sum(
            weight.numel() for name, weight in self.frozen.items() if _is_multiplied(name, weight)
        )
        self.vector_tables = {
            kind: VectorTable(
                {
                    name: weight.to(device, self.vector_dtype)
                    for name, weight in backbone.weights.items()
                    if weight.ndim == 1 and name.endswith(f".{kind}")
                }
            )
            for kind in PARAMETER_KINDS
        }
        self.row_of_slot: dict[str, list[int]] = {kind: [0] for kind in PARAMETER_KINDS}
        self.matrices: dict[str, dict[int, Tensor]] = {name: {} for name in self.frozen}
        self.sparse: dict[str, dict[int, SparseWeights]] = {name: {} for name in self.frozen}
        self.heads: list[tuple[Tensor, Tensor]] = [_NO_HEAD]
        self.matrix_slots: set[int] = set()
        self.mean_slots: set[int] = set()
        self.layers_slots: set[int] = set()
        self.pair_slots: set[int] = set()
        # Sparse values in multiplied matrices, of slots without whole matrices.
        self._num_sparse: dict[int, int] = {}
        self._free_slots: list[int] = []

    @property
    def num_slots(self) -> int:
        """Number of slots in use, slot 0 included."""
        return len(self.heads) - len(self._free_slots)

    @property
    def generation(self) -> int:
        """Number of times that a vector table has moved."""
        return sum(table.generation for table in self.vector_tables.values())

    def vectors(self, name: str) -> Tensor:
        """Return the table [S or more, O] of a vector; see `row_of_slot` for a slot's row."""
        return self.vector_tables[name.rpartition(".")[2]].capacity[name]

    def vector_rows(self, slots: Sequence[int]) -> list[list[int]]:
        """Return each slot's row in the vector tables, by kind in the order of the kinds."""
        return [[self.row_of_slot[kind][slot] for slot in slots] for kind in PARAMETER_KINDS]

    def encoder_slot(self, slot: int) -> int:
        """Return the slot with the values that the encoder reads for a slot's rows.

        It is slot 0, the backbone's, for a slot that trains its head alone.
        """
        trains = slot in self.matrix_slots or any(rows[slot] for rows in self.row_of_slot.values())
        return slot if trains else 0

    def allows_int8(self, slot: int) -> bool:
        """Tell whether a slot's rows may be computed in int8, because no matrix is trained."""
        return bool(self.int8_matrices) and slot not in self.matrix_slots

    def has_whole_matrices(self, slot: int) -> bool:
        """Tell whether a slot in `matrix_slots` trains more than sparse values."""
        return slot not in self._num_sparse

    def head_input(self, slot: int, pooled: Tensor) -> Tensor:
        """Return what the head of a slot reads of the pooled outputs of its rows: [R, I].

        `pooled` may be wider than the slot needs, see `deltas.encoder.encoder.encode`.
        """
        if slot in self.pair_slots:
            return pair_features(pooled[:, -self._backbone.config.hidden_size :])
        return pooled[:, -self.heads[slot][0].shape[1] :]

    def needs_span(self, slot: int, num_tokens: int) -> bool:
        """Tell whether a slot's tokens must be neighbours in a batch on a CPU.

        Sparse values are added to the products of each token, wherever it lies. If many tokens meet
        many values, merging the values into a copy of the matrix takes less time: multiplying and
        adding one value takes about as long as copying one value of the matrix.
        """
        if slot not in self.matrix_slots:
            return False
        if self.has_whole_matrices(slot):
            return True
        return num_tokens * self._num_sparse[slot] >= self._num_multiplied

    def compile_products(self, sizes: Sequence[int]) -> int:
        """Multiply zeros [size, I] by a matrix of every shape; returns the number of products."""
        products = {self.frozen[name].shape: multiply for name, multiply in self.products.items()}
        with torch.inference_mode():
            for (_, width), multiply in products.items():
                x = torch.zeros(max(sizes), width, dtype=self.dtype)
                for size in sizes:
                    multiply(x[:size])
        return len(products) * len(sizes)

    def stage(self, delta: Delta) -> StagedDelta:
        """Convert a delta to the form of a slot; thread-safe, since the bank does not change."""
        head = delta.head_weight, delta.head_bias
        task = delta.manifest.task
        return self.stage_values(delta.entries, head, Reading.of(task.pooling, task.pairs))

    def stage_values(
        self, values: Mapping[str, Entry], head: tuple[Tensor, Tensor], reading: Reading
    ) -> StagedDelta:
        """Convert the values of a delta that has no manifest yet, as `stage` does.

        Args:
            values: the entries by Hugging Face name.
            head: weight and bias.
            reading: the way in which the head reads a row.
        """
        frozen = self._backbone.parameters
        trained = {name.rpartition(".")[2] for name in values if frozen[name].ndim == 1}
        vectors = {
            kind: self.concatenate(kind, values, frozen).to(self.vector_dtype)
            for kind in PARAMETER_KINDS
            if kind in trained
        }
        matrices: dict[str, Tensor] = {}
        sparse: dict[str, SparseWeights] = {}
        for name, weight in self.frozen.items():
            parts = self._layout[name]
            entries = [values[part] for part in parts if part in values]
            if weight.ndim != 2 or not entries:
                continue
            if _needs_whole_matrix(entries, weight):
                resolved = _resolved(parts, values, frozen)
                matrices[name] = torch.cat(resolved).to(self.dtype)
            else:
                sparse[name] = self._sparse_weights(name, parts, values)
        # Heads are small and read last: in float32 they change no label.
        head_weight, head_bias = (part.clone() for part in head)
        return StagedDelta(vectors, matrices, sparse, head_weight, head_bias, reading)

    def concatenate(
        self, kind: str, entries: Mapping[str, Entry], frozen: Mapping[str, Tensor]
    ) -> Tensor:
        """Concatenate the vectors of a kind in the tables' order, frozen where no entry is."""
        parts = [part for name in self.vector_tables[kind].capacity for part in self._layout[name]]
        return torch.cat(_resolved(parts, entries, frozen))

    def add(self, staged: Sequence[StagedDelta]) -> list[int]:
        """Give each delta a slot; returns the slots in order."""
        slots = [self._take_slot() for _ in staged]
        for kind, table in self.vector_tables.items():
            rows = table.insert([item.vectors[kind] for item in staged if kind in item.vectors])
            for slot, item in zip(slots, staged, strict=True):
                self.row_of_slot[kind][slot] = next(rows) if kind in item.vectors else 0
        for slot, item in zip(slots, staged, strict=True):
            for name, matrix in item.matrices.items():
                self.matrices[name][slot] = matrix.to(self.device)
            for name, sparse in item.sparse.items():
                self.sparse[name][slot] = sparse.to(self.device)
            if item.matrices or item.sparse:
                self.matrix_slots.add(slot)
            self._note_reading(slot, item)
            if not item.matrices:
                self._num_sparse[slot] = sum(
                    len(sparse.rows)
                    for name, sparse in item.sparse.items()
                    if _is_multiplied(name, self.frozen[name])
                )
            self.heads[slot] = item.head_weight.to(self.device), item.head_bias.to(self.device)
        return slots

    def _note_reading(self, slot: int, item: StagedDelta) -> None:
        for holds, slots in (
            (item.reading.mean, self.mean_slots),
            (item.reading.every_layer, self.layers_slots),
            (item.reading.pairs, self.pair_slots),
        ):
            if holds:
                slots.add(slot)

    def remove(self, slot: int) -> None:
        """Free a slot that no batch reads, and the memory of its matrices and head."""
        for name in self.frozen:
            self.matrices[name].pop(slot, None)
            self.sparse[name].pop(slot, None)
        for slots in (self.matrix_slots, self.mean_slots, self.layers_slots, self.pair_slots):
            slots.discard(slot)
        self._num_sparse.pop(slot, None)
        self.heads[slot] = _NO_HEAD
        for kind, table in self.vector_tables.items():
            table.free(self.row_of_slot[kind][slot])
            self.row_of_slot[kind][slot] = 0
        self._free_slots.append(slot)

    def reserve(self, num_slots: int) -> None:
        """Allocate memory for the vectors of this many slots besides the backbone's."""
        for table in self.vector_tables.values():
            table.reserve(num_slots)

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self.heads.append(_NO_HEAD)
        for rows in self.row_of_slot.values():
            rows.append(0)
        return len(self.heads) - 1

    def _sparse_weights(
        self, name: str, parts: Sequence[str], entries: Mapping[str, Entry]
    ) -> SparseWeights:
        indices, values = [], []
        offset = 0
        for part in parts:
            entry = entries.get(part)
            if isinstance(entry, SparseEntry):
                indices.append(entry.indices + offset)
                values.append(entry.values)
            offset += self._backbone.parameters[part].numel()
        frozen = self._backbone.weights[name]
        return SparseWeights.of(torch.cat(indices), torch.cat(values), frozen, self.dtype)


def _is_multiplied(name: str, weight: Tensor) -> bool:
    """Tell whether activations are multiplied by a weight, rather than looked up in it or added."""
    return weight.ndim == 2 and not name.startswith("embeddings.")


def _needs_whole_matrix(entries: Sequence[Entry], frozen: Tensor) -> bool:
    """Tell whether entries of a matrix take less memory as a whole matrix than as sparse values."""
    if any(isinstance(entry, DenseEntry) for entry in entries):
        return True
    return sum(entry.values.numel() for entry in entries) * BYTES_PER_VALUE > frozen.nbytes


def _resolved(
    parts: Iterable[str], entries: Mapping[str, Entry], frozen: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return the values of each part: the entry's if there is one, else the frozen ones."""
    return [
        entries[part].resolve(frozen[part]) if part in entries else frozen[part] for part in parts
    ]
