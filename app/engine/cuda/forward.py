"""The forward pass on a GPU; see `app.engine.cuda` for its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import torch
from torch import Tensor

from app.engine.cuda.attention import VarlenAttention
from app.engine.cuda.batch import (
    NO_SPANS,
    BatchShape,
    Spans,
    batch_shapes,
    decode_batch,
    encode_batch,
    first_fitting,
)
from app.engine.cuda.graphs import Graphs, Recorder
from deltas import EncoderConfig, TokenizedRow, encode
from deltas.encoder.bank import PARAMETER_KINDS, Bank
from deltas.encoder.bank_overlay import BankOverlay


@dataclass
class _HeadGroup:
    """Heads with inputs of one kind, and the vectors of the rows that they score."""

    pairs: bool  # whether a row has two vectors
    vectors: list[int] = field(default_factory=list)  # indices into the pooled output
    columns: dict[int, range] = field(default_factory=dict)  # of each slot's head in the scores
    width: int = 0  # outputs of all heads
    start: int = 0  # of the next row's scores in those of all groups


class CudaForward:
    """Forward passes on a GPU, for one thread.

    Args:
        config: sizes of the encoder.
        bank: deltas on the GPU.
        new_recorder: makes a recorder of passes; None runs every pass without a record.
    """

    def __init__(
        self, config: EncoderConfig, bank: Bank, new_recorder: Callable[[], Recorder] | None = None
    ) -> None:
        self._config = config
        self._bank = bank
        self._shapes = batch_shapes(config.max_positions) if new_recorder else []
        self._graphs = Graphs(self._encode, new_recorder) if new_recorder else None
        self._generation = bank.generation

    def logits(
        self, rows: Sequence[TokenizedRow], slots: Sequence[int], *, int8: bool = False
    ) -> list[list[float]]:
        """Return the logits of each row; see `app.engine.engine.Forward`."""
        if int8:
            raise ValueError("int8 is for CPUs")
        ends = list(accumulate(len(self._bank.heads[slot][1]) for slot in slots))
        logits = self.start(rows, slots).tolist()  # waits for the device
        return [logits[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @torch.inference_mode()
    def start(self, rows: Sequence[TokenizedRow], slots: Sequence[int]) -> Tensor:
        """Start a pass; returns the logits of all rows, concatenated, still being computed."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        heads, indices = self._plan_heads(slots)
        slots = [slot for row, slot in zip(rows, slots, strict=True) for _ in row.sequences]
        mean = [slot in self._bank.mean_slots for slot in slots]
        with_matrices = self._bank.matrix_slots.intersection(slots)
        every_layer = not self._bank.layers_slots.isdisjoint(slots)
        needed = BatchShape.of(sequences, mean, every_layer=every_layer)
        shape = None if with_matrices else first_fitting(self._shapes, needed)
        keys = [slot if slot in with_matrices else 0 for slot in slots]
        extra = [self._vector_rows(slots, shape.rows if shape else len(slots))]
        extra += [*(group.vectors for group in heads), indices]
        encoded = encode_batch(sequences, shape or needed, keys, mean, extra)
        numbers = _on_device(encoded.numbers, self._bank.device)
        sizes = [encoded.shape.num_numbers + len(extra[0]), *map(len, extra[1:])]
        of_pass, *vectors, of_rows = torch.split(numbers, sizes)
        if shape:
            pooled = self._replay(of_pass, shape)
        else:
            pooled = self._encode(of_pass, encoded.shape, slots, encoded.spans)
        scores = [
            self._scores(group, pooled.index_select(0, index))
            for group, index in zip(heads, vectors, strict=True)
        ]
        return torch.cat(scores)[of_rows]

    @torch.inference_mode()
    def prepare(self, max_tokens: int, max_rows: int, longest: int) -> int:
        """Record a pass of every shape that such batches need; return the number of records."""
        if self._graphs is None:
            return 0
        needed = BatchShape(max_tokens, max_rows, longest)
        largest = first_fitting(self._shapes, needed) or self._shapes[-1]
        layers = self._bank.layers_slots
        poolings = {(False, False)}  # with means, of every layer
        poolings |= {(True, False)} if self._bank.mean_slots - layers else set()
        poolings |= {(True, True)} if layers else set()
        for shape in reversed(self._shapes):
            is_needed = shape.tokens <= largest.tokens and shape.longest <= largest.longest
            if is_needed and (shape.with_means, shape.every_layer) in poolings:
                extra = [self._vector_rows([0], shape.rows)]
                encoded = encode_batch([([0], [0])], shape, extra=extra)
                self._replay(_on_device(encoded.numbers, self._bank.device), shape)
        return self._graphs.num_recorded

    def _replay(self, numbers: Tensor, shape: BatchShape) -> Tensor:
        assert self._graphs is not None
        if self._generation != self._bank.generation:
            self._graphs.clear()
            self._generation = self._bank.generation
        return self._graphs.replay(numbers, shape)

    def _encode(
        self, numbers: Tensor, shape: BatchShape, slots: Sequence[int] = (), spans: Spans = NO_SPANS
    ) -> Tensor:
        """Compute the pooled output [P, H] from a batch's numbers and the vector rows behind them.

        Slots and their spans may be left out if no slot has matrices.
        """
        batch = decode_batch(numbers, shape, spans)
        vector_rows = numbers[shape.num_numbers :].view(len(PARAMETER_KINDS), -1)
        overlay = BankOverlay(self._bank, batch, slots, vector_rows)
        return encode(self._config, overlay, batch, VarlenAttention(batch))

    def _vector_rows(self, slots: Sequence[int], count: int) -> list[int]:
        """List each slot's row of the vector tables, kind after kind, padded to `count`."""
        filling = [0] * (count - len(slots))
        return list(chain.from_iterable(kind + filling for kind in self._bank.vector_rows(slots)))

    def _plan_heads(self, slots: Sequence[int]) -> tuple[list[_HeadGroup], list[int]]:
        """Group the heads of the rows' slots by width.

        Returns:
            The groups, and the indices of each row's logits in the scores of all groups, laid out
            one after the other.
        """
        groups: dict[tuple[bool, int], _HeadGroup] = {}  # by input: pairs or not, and its width
        num_vectors = 0
        group_of = {}
        for slot in slots:
            pairs = slot in self._bank.pair_slots
            reads = pairs, self._bank.heads[slot][0].shape[1]
            group = group_of[slot] = groups.setdefault(reads, _HeadGroup(pairs))
            if slot not in group.columns:
                outputs = len(self._bank.heads[slot][1])
                group.columns[slot] = range(group.width, group.width + outputs)
                group.width += outputs
            group.vectors.extend(range(num_vectors, num_vectors + 1 + pairs))
            num_vectors += 1 + pairs
        done = 0
        for group in groups.values():
            group.start = done
            done += len(group.vectors) // (1 + group.pairs) * group.width
        indices = []
        for slot in slots:
            group = group_of[slot]
            indices += [group.start + column for column in group.columns[slot]]
            group.start += group.width
        return list(groups.values()), indices

    def _scores(self, group: _HeadGroup, vectors: Tensor) -> Tensor:
        """Score every row of a group with all of its heads, of which a row needs one."""
        heads = [self._bank.heads[slot] for slot in group.columns]
        weight, bias = torch.cat([w for w, _ in heads]), torch.cat([b for _, b in heads])
        x = self._bank.head_input(next(iter(group.columns)), vectors)
        return torch.addmm(bias, x, weight.t()).view(-1)


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy in one transfer; pinned memory lets a GPU copy without blocking this thread."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
