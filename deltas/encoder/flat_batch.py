"""Flat batches: rows end to end, as one line of whole numbers that one copy brings to a device.

For GPUs while serving. Nothing lies between rows, and everything behind them is only there to fill
the batch up to a size: kernels that are recorded once (`app.engine.cuda`) find all they read in the same
places each time. Attention takes each row by itself (`deltas.encoder.segments`), so there are no windows
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

from deltas.encoder.packing import KeySpan, PackedBatch

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]  # input ids, token type ids

_NONE = torch.empty(0, dtype=torch.int64)


class Size(NamedTuple):
    """What a batch is filled up to: N tokens, P packed rows, and the tokens of a row at most."""

    tokens: int
    rows: int
    longest: int

    @property
    def num_numbers(self) -> int:
        """How many numbers describe a batch of that size."""
        return 2 * self.tokens + 4 * self.rows + 1

    def fits(self, needed: Size) -> bool:
        """Whether a batch that needs so much can be filled up to this."""
        return all(own >= other for own, other in zip(self, needed, strict=True))

    @classmethod
    def of(cls, rows: Rows) -> Size:
        """What rows need."""
        lengths = [len(ids) for ids, _ in rows]
        return cls(sum(lengths), len(rows), max(lengths, default=0))


@dataclass(frozen=True)
class FlatBatch:
    """A batch on the host.

    Attributes:
        numbers: int64, `size.num_numbers` of them and then what else was given.
        size: what the rows are filled up to.
        spans: by key, where its rows lie.
    """

    numbers: Tensor
    size: Size
    spans: dict[int, KeySpan]


@dataclass(frozen=True)
class FlatPackedBatch(PackedBatch):
    """A flat batch as the encoder and `deltas.encoder.segments` read it.

    Attributes:
        bounds: int64 [P + 1], where each packed row begins and the last one ends; packed rows that
            only fill up are empty.
        longest: most tokens of a row.
    """

    bounds: Tensor
    longest: int


def flatten(
    rows: Rows,
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
    needed = Size.of(rows)
    size = size or needed
    if not size.fits(needed):
        raise ValueError(f"{needed} does not fit {size}")
    order = sorted(range(len(rows)), key=keys.__getitem__) if keys else range(len(rows))
    ids, types, first = array("q"), array("q"), array("q")
    packed_row = array("q", bytes(8 * size.rows))
    spans: dict[int, KeySpan] = {}
    for place, row in enumerate(order):
        first.append(len(ids))
        ids.extend(rows[row][0])
        types.extend(rows[row][1])
        packed_row[row] = place
        key = keys[row] if keys else 0
        start = spans[key] if key in spans else KeySpan(slice(first[-1], 0), slice(place, 0))
        spans[key] = KeySpan(
            slice(start.tokens.start, len(ids)), slice(start.positions.start, place + 1)
        )
    bounds = first + array("q", [len(ids)] * (size.rows - len(rows) + 1))
    numbers = _filled(ids, size.tokens) + _filled(types, size.tokens)
    numbers += _filled(array("q", order), size.rows) + _filled(first, size.rows)
    numbers += packed_row + bounds
    for more in along:
        numbers.extend(more)
    return FlatBatch(torch.frombuffer(numbers, dtype=torch.int64), size, spans)


def _filled(numbers: array[int], count: int) -> array[int]:
    """As many numbers as that, zeros at the end: what fills up reads what is always there."""
    return numbers + array("q", bytes(8 * (count - len(numbers))))


def unflatten(
    numbers: Tensor, size: Size, spans: dict[int, KeySpan] | None = None
) -> FlatPackedBatch:
    """A batch as the encoder reads it: views of its numbers, and what follows from these there.

    Args:
        numbers: int64, `size.num_numbers` of them at least.
        size: of the batch.
        spans: by key, where its rows lie.
    """
    counts = [size.tokens] * 2 + [size.rows] * 3 + [size.rows + 1]
    parts = torch.split(numbers[: size.num_numbers], counts)
    input_ids, token_type_ids, row_at_position, first, packed_row, bounds = parts
    # Tokens behind the rows count as further ones of the last packed row.
    place = torch.arange(size.tokens, device=numbers.device)
    packed = torch.searchsorted(bounds, place, right=True).sub_(1).clamp_(max=size.rows - 1)
    return FlatPackedBatch(
        input_ids=input_ids,
        token_type_ids=token_type_ids,
        position_ids=(place - first[packed]).clamp_(max=size.longest - 1),
        row_of_token=row_at_position[packed],
        row_at_position=row_at_position,
        first_token=first,
        position_of_row=packed_row,
        segment_lengths=_NONE,
        position_lengths=_NONE,
        blocks=(),
        key_spans=spans or {},
        bounds=bounds,
        longest=size.longest,
    )
