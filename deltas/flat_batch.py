"""Flat batches: rows end to end, as one line of whole numbers that one copy brings to a device.

For GPUs while serving. Nothing lies between rows, and everything behind them is only there to fill
the batch up to a size: kernels that are recorded once (`app.graphs`) find all they read in the same
places each time. Attention takes each row by itself (`deltas.segments`), so there are no windows
and no masks, and no row can see another's numbers, NaN included.

Legend: N tokens, P packed rows, R rows of the input; R <= P.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltas.packing import PackedBatch, Span

_NONE = torch.empty(0, dtype=torch.int64)


class Size(NamedTuple):
    """What a batch is filled up to: N tokens, P packed rows."""

    tokens: int
    rows: int

    @property
    def num_numbers(self) -> int:
        """How many numbers describe a batch of that size."""
        return 4 * self.tokens + 4 * self.rows + 1


@dataclass(frozen=True)
class FlatBatch:
    """A batch on the host.

    Attributes:
        numbers: int64, `size.num_numbers` of them and then what else was given.
        size: what the rows are filled up to.
        spans: by key, where its rows lie.
        longest: tokens of the longest row.
    """

    numbers: Tensor
    size: Size
    spans: dict[int, Span]
    longest: int


def flatten(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    size: Size | None = None,
    keys: Sequence[int] | None = None,
    along: Iterable[Sequence[int]] = (),
) -> FlatBatch:
    """Lay rows end to end.

    Args:
        rows: (input ids, token type ids) of each row, at least one token a row.
        size: at least what the rows need; None for just that.
        keys: rows of one key lie side by side, those of the lowest key first.
        along: further numbers, to come to the device in the same copy.

    Raises:
        ValueError: the rows don't fit the size.
    """
    lengths = [len(ids) for ids, _ in rows]
    size = size or Size(sum(lengths), len(rows))
    if sum(lengths) > size.tokens or len(rows) > size.rows:
        raise ValueError(f"{sum(lengths)} tokens in {len(rows)} rows don't fit {size}")
    order = sorted(range(len(rows)), key=keys.__getitem__) if keys else list(range(len(rows)))
    ids, types, positions, row_of_token = (array("q") for _ in range(4))
    first, packed_row = array("q"), array("q", bytes(8 * size.rows))
    spans: dict[int, Span] = {}
    for place, row in enumerate(order):
        start = len(ids)
        ids.extend(rows[row][0])
        types.extend(rows[row][1])
        positions.extend(range(lengths[row]))
        row_of_token.extend([row] * lengths[row])
        first.append(start)
        packed_row[row] = place
        key = keys[row] if keys else 0
        before = spans.get(key, Span(slice(start, start), slice(place, place)))
        spans[key] = Span(slice(before.tokens.start, len(ids)), slice(before.rows.start, place + 1))
    bounds = first + array("q", [len(ids)] * (size.rows - len(rows) + 1))
    numbers = array("q")
    for part in (ids, types, positions, row_of_token):
        numbers += _filled(part, size.tokens)
    for part in (array("q", order), first):
        numbers += _filled(part, size.rows)
    numbers += packed_row
    numbers += bounds
    for more in along:
        numbers.extend(more)
    return FlatBatch(
        torch.frombuffer(numbers, dtype=torch.int64), size, spans, max(lengths, default=0)
    )


def _filled(numbers: array[int], count: int) -> array[int]:
    """As many numbers as that, zeros at the end: what fills up reads what is always there."""
    return numbers + array("q", bytes(8 * (count - len(numbers))))


def unflatten(
    numbers: Tensor, size: Size, longest: int, spans: dict[int, Span] | None = None
) -> PackedBatch:
    """A batch as the encoder reads it: views of its numbers, wherever these are.

    Args:
        numbers: int64, `size.num_numbers` of them at least.
        size: of the batch.
        longest: tokens of a row, at most.
        spans: by key, where its rows lie.
    """
    counts = [size.tokens] * 4 + [size.rows] * 3 + [size.rows + 1]
    parts = torch.split(numbers[: size.num_numbers], counts)
    ids, types, positions, row_of_token, row_of_packed, first, packed_row, bounds = parts
    return PackedBatch(
        input_ids=ids,
        token_type_ids=types,
        position_ids=positions,
        row_of_token=row_of_token,
        row_of_packed=row_of_packed,
        first=first,
        packed_row=packed_row,
        piece_lengths=_NONE,
        packed_lengths=_NONE,
        blocks=(),
        spans=spans or {},
        bounds=bounds,
        longest=longest,
    )
