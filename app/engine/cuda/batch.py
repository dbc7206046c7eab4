"""Writes a batch into one tensor, and makes a packed batch of it on a GPU.

A batch comes in few shapes, because `app.engine.cuda.graphs` records a pass for each of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import PackedBatch
from deltas.encoder.packing import KeySpan

# 64, 96, 128, 192 and so on; more than 16,384 tokens keep a GPU busy without a recorded pass.
_TOKEN_COUNTS = sorted([2**n for n in range(6, 15)] + [3 * 2**n for n in range(5, 13)])
_TOKENS_PER_ROW = 16  # a batch with more rows than that takes the next larger shape
_LONGEST_ROWS = (128, 512)  # attention kernels are launched for rows of this length

_EMPTY = torch.empty(0, dtype=torch.int64)
Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
Spans = Mapping[int, KeySpan]
NO_SPANS: Spans = {}


class BatchShape(NamedTuple):
    """The numbers of tokens and rows that a batch is filled up to, and its longest row's tokens.

    `with_means` says that some rows have mean pooling; then the last layer computes all tokens.
    `every_layer` says that some rows read the means of every layer.
    """

    tokens: int
    rows: int
    longest: int
    with_means: bool = False
    every_layer: bool = False

    @property
    def num_numbers(self) -> int:
        """Number of int64 values that describe a batch of this shape."""
        return 2 * self.tokens + 4 * self.rows + 1

    def fits(self, needed: BatchShape) -> bool:
        """Tell whether a batch with the needed shape can be filled up to this one."""
        return all(mine >= other for mine, other in zip(self, needed, strict=True))

    @classmethod
    def of(
        cls, rows: Sequences, mean: Sequence[bool] = (), *, every_layer: bool = False
    ) -> BatchShape:
        """Return the smallest shape that holds the rows; see `encode_batch` for the arguments."""
        lengths = [len(ids) for ids, _ in rows]
        return cls(sum(lengths), len(rows), max(lengths, default=0), any(mean), every_layer)


def batch_shapes(max_positions: int) -> list[BatchShape]:
    """List the shapes that are recorded, for rows of at most `max_positions` tokens."""
    shapes = {
        BatchShape(count, count // _TOKENS_PER_ROW, min(longest, max_positions, count), *pooling)
        for count in _TOKEN_COUNTS
        for longest in _LONGEST_ROWS
        for pooling in ((False, False), (True, False), (True, True))
    }
    return sorted(shapes)


def first_fitting(shapes: Sequence[BatchShape], needed: BatchShape) -> BatchShape | None:
    """Return the first shape that fits, or None."""
    return next((shape for shape in shapes if shape.fits(needed)), None)


class EncodedBatch(NamedTuple):
    """A batch on the host: int64 numbers, the shape they fill, and each key's tokens and rows."""

    numbers: Tensor
    shape: BatchShape
    spans: dict[int, KeySpan]


@dataclass(frozen=True)
class CudaBatch(PackedBatch):
    """A packed batch without padding between rows and without windows.

    Its positions are the first token of each row; if some rows have mean pooling, all tokens
    follow. `first_token_of_row` and what describes rows on the host is empty.

    Attributes:
        cu_seqlens: int64, one number more than rows, cumulative sequence lengths: the first token
            of each row, and the end of the last one. Rows that only fill the batch up are empty.
        longest: upper bound for the tokens of a row.
    """

    cu_seqlens: Tensor
    longest: int


def encode_batch(
    rows: Sequences,
    shape: BatchShape | None = None,
    keys: Sequence[int] | None = None,
    mean: Sequence[bool] = (),
    extra: Iterable[Sequence[int]] = (),
) -> EncodedBatch:
    """Write rows end to end into one tensor.

    Args:
        rows: (input ids, token type ids) of each row, at least one token each.
        shape: shape to fill the batch up to; None adds nothing.
        keys: key of each row; rows of one key become neighbours, the lowest key first. The rows of
            a key other than 0 have the same pooling.
        mean: whether each row's pooled output is the mean of its tokens; empty if none is.
        extra: further numbers to append.

    Raises:
        ValueError: the rows do not fit the shape.
    """
    needed = BatchShape.of(rows, mean)
    shape = shape or needed
    if not shape.fits(needed):
        raise ValueError(f"{needed} does not fit {shape}")
    order = sorted(range(len(rows)), key=keys.__getitem__) if keys else range(len(rows))
    ids, types, starts = array("q"), array("q"), array("q")
    pooled_of_row = array("q", bytes(8 * shape.rows))
    spans: dict[int, KeySpan] = {}
    for position, row in enumerate(order):
        starts.append(len(ids))
        ids.extend(rows[row][0])
        types.extend(rows[row][1])
        is_mean = bool(mean) and mean[row]
        # Means are pooled after the first tokens, and their positions follow those, too.
        pooled_of_row[row] = position + is_mean * shape.rows
        tokens = range(starts[-1], len(ids))
        positions = range(position, position + 1)
        if is_mean:
            positions = range(shape.rows + tokens.start, shape.rows + tokens.stop)
        key = keys[row] if keys else 0
        first = spans.get(key, KeySpan(slice(tokens.start, 0), slice(positions.start, 0)))
        spans[key] = KeySpan(
            slice(first.tokens.start, tokens.stop), slice(first.positions.start, positions.stop)
        )
    cu_seqlens = starts + array("q", [len(ids)] * (shape.rows - len(rows) + 1))
    numbers = _zero_filled(ids, shape.tokens) + _zero_filled(types, shape.tokens)
    numbers += _zero_filled(array("q", order), shape.rows) + _zero_filled(starts, shape.rows)
    numbers += pooled_of_row + cu_seqlens
    numbers.extend(chain.from_iterable(extra))
    return EncodedBatch(torch.frombuffer(numbers, dtype=torch.int64), shape, spans)


def _zero_filled(numbers: array[int], count: int) -> array[int]:
    """Append zeros; the token and the row that they point to always exist."""
    return numbers + array("q", bytes(8 * (count - len(numbers))))


def decode_batch(numbers: Tensor, shape: BatchShape, spans: Spans = NO_SPANS) -> CudaBatch:
    """Make a packed batch from views of an encoded batch's numbers, on their device."""
    counts = [shape.tokens] * 2 + [shape.rows] * 3 + [shape.rows + 1]
    parts = torch.split(numbers[: shape.num_numbers], counts)
    input_ids, token_type_ids, row_at_position, first_token, pooled_of_row, cu_seqlens = parts
    # Tokens behind the rows count as further tokens of the last one.
    token = torch.arange(shape.tokens, device=numbers.device)
    position = torch.searchsorted(cu_seqlens, token, right=True).sub_(1).clamp_(max=shape.rows - 1)
    row_of_token, token_at_position = row_at_position[position], first_token
    if shape.with_means:
        token_at_position = torch.cat([first_token, token])
        row_at_position = torch.cat([row_at_position, row_of_token])
    return CudaBatch(
        input_ids=input_ids,
        token_type_ids=token_type_ids,
        position_ids=(token - first_token[position]).clamp_(max=shape.longest - 1),
        row_of_token=row_of_token,
        token_at_position=token_at_position,
        row_at_position=row_at_position,
        first_token_of_row=_EMPTY,
        pooled_of_row=pooled_of_row,
        # Tokens behind the rows have a mean of their own, which no row reads.
        mean_offsets=F.pad(cu_seqlens, (0, 1), value=shape.tokens),
        segment_lengths=_EMPTY,
        run_segments=_EMPTY,
        run_lengths=_EMPTY,
        num_cls=shape.rows,
        every_layer=shape.every_layer,
        blocks=(),
        key_spans=dict(spans),
        cu_seqlens=cu_seqlens,
        longest=shape.longest,
    )
