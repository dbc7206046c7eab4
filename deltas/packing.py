"""Packed batches: rows of different lengths laid end to end, without padding.

Rows are ordered by length, so rows of equal length lie side by side and attention over such a group
is one dense, unmasked call. Rows that share more than that (weights of their own) can be kept
together. Legend: R rows, N tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """`num_rows` rows of `length` tokens each, from token `start` and from packed row `row` on."""

    start: int
    length: int
    num_rows: int
    row: int


@dataclass(frozen=True)
class PackedBatch:
    """What the encoder reads.

    Attributes:
        input_ids: int64 [N].
        token_type_ids: int64 [N].
        position_ids: int64 [N], 0 at the start of each row.
        first: int64 [R], where each packed row's first token lies.
        order: int64 [R], packed row r is row `order[r]` of the input.
        lengths: int64 [R], tokens of each packed row.
        groups: rows of equal length.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    first: Tensor
    order: Tensor
    lengths: Tensor
    groups: tuple[Group, ...]

    def restore(self, packed: Tensor) -> Tensor:
        """Put per-row results [R, ...] back into input order."""
        restored = torch.empty_like(packed)
        restored[self.order] = packed
        return restored


def pack(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    device: torch.device | str = "cpu",
    keys: Sequence[int] | None = None,
) -> PackedBatch:
    """Lay rows end to end, shortest first; rows of one length keep their order.

    Args:
        rows: (input ids, token type ids) of each row, at least one token a row.
        device: where the tensors shall be.
        keys: rows of one key lie side by side, those of the lowest key first; None lets all be
            ordered by length alone, which makes the largest groups.
    """
    keys = [0] * len(rows) if keys is None else keys
    order = sorted(range(len(rows)), key=lambda index: (keys[index], len(rows[index][0])))
    lengths = [len(rows[index][0]) for index in order]
    groups: list[Group] = []
    start = row = 0
    for length, members in groupby(lengths):
        count = len(list(members))
        groups.append(Group(start, length, count, row))
        start += length * count
        row += count
    sizes = torch.tensor(lengths)
    first = sizes.cumsum(0) - sizes
    position = torch.arange(start) - first.repeat_interleave(sizes)
    ids = torch.tensor([token for index in order for token in rows[index][0]])
    types = torch.tensor([kind for index in order for kind in rows[index][1]])
    return PackedBatch(
        input_ids=ids.to(device),
        token_type_ids=types.to(device),
        position_ids=position.to(device),
        first=first.to(device),
        order=torch.tensor(order).to(device),
        lengths=sizes.to(device),
        groups=tuple(groups),
    )
