"""Packed batches: rows of different lengths laid into windows of few widths, with little padding.

Several short rows share a window; attention runs over all windows of a width in one call, under a
mask that keeps rows apart. So no row waits for padding to the longest one, and the number of calls
does not grow with the number of different lengths. Windows are multiples of 32 tokens wide, which
CPU kernels like best, and a batch comes in few total sizes: libraries that compile a kernel for
each shape (oneDNN does, in milliseconds) soon have them all.

Legend: R rows, N tokens of all windows together, P packed rows (padding included), C windows of a
block, W their width, Q packed rows of each.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

_GRAIN = 32  # window widths are multiples of this
_FINE_GRAIN = 16  # of a window that is alone in its batch, where padding would cost most
_FINEST_GRAIN = 4  # of few tokens that lie end to end
_MOST_ROWS = 512  # packed rows of a usual batch
_WINDOW = 64  # a window holds at least so many tokens, before what stays empty is cut off


@dataclass(frozen=True)
class Block:
    """Windows of one width, side by side.

    Attributes:
        tokens: where their C x W tokens lie.
        positions: where their C x Q packed rows lie.
        count: windows, C.
        width: tokens of a window, W.
        allowed: bool [C, 1, W, W], which token (third axis) sees which (last axis); None: all.
    """

    tokens: slice
    positions: slice
    count: int
    width: int
    allowed: Tensor | None


@dataclass(frozen=True)
class KeySpan:
    """Where the rows of one key lie: tokens and packed rows, each from start to before stop."""

    tokens: slice
    positions: slice


@dataclass(frozen=True)
class PackedBatch:
    """What the encoder reads. Padding tokens see each other only, and belong to some row beside.

    Attributes:
        input_ids: int64 [N].
        token_type_ids: int64 [N].
        position_ids: int64 [N], 0 at the start of each row and in padding.
        row_of_token: int64 [N], which row of the input each token belongs to.
        row_at_position: int64 [P], which row of the input each packed row is; padding repeats one.
        first_token: int64 [P], where each packed row's first token lies.
        position_of_row: int64 [R], where each row of the input is among the packed rows.
        segment_lengths: int64 [Z], tokens of each row or stretch of padding, in the order they lie;
            on the host. Empty in a flat batch.
        position_lengths: int64 [P], tokens of each packed row; on the host. Empty in a flat batch.
        blocks: the windows; none where rows lie end to end.
        spans: by key.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    row_of_token: Tensor
    row_at_position: Tensor
    first_token: Tensor
    position_of_row: Tensor
    segment_lengths: Tensor
    position_lengths: Tensor
    blocks: tuple[Block, ...]
    key_spans: dict[int, KeySpan]


@dataclass
class _Window:
    """Rows that share a window, and what is free behind them."""

    free: int
    rows: list[int] = field(default_factory=list)
    used: int = 0
    width: int = 0  # once nothing more will be put in: what is not needed is cut off


class _Layout:
    """The batch while it is laid out, as plain lists; a piece is a row or a stretch of padding."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        self.rows = rows
        self.ids = array("q")
        self.types = array("q")
        self.positions = array("q")
        self.segment_lengths: list[int] = []
        self.piece_rows: list[int] = []
        self.packed: list[int] = []
        self.first: list[int] = []
        self.packed_row = [0] * len(rows)
        self.blocks: list[Block] = []  # `allowed` is filled in last

    def add_block(self, windows: Sequence[_Window]) -> None:
        """Lay out windows of one width."""
        width = windows[0].width
        each = max(len(window.rows) for window in windows)
        first_token, first_row = len(self.ids), len(self.packed)
        for window in windows:
            self.add_rows(window.rows)
            self.add_padding(width - window.used)
            self.repeat_row(each - len(window.rows))
        tokens, rows = slice(first_token, len(self.ids)), slice(first_row, len(self.packed))
        self.blocks.append(Block(tokens, rows, len(windows), width, None))

    def add_rows(self, rows: Iterable[int]) -> None:
        """Lay out rows end to end."""
        for row in rows:
            ids, types = self.rows[row]
            self.packed_row[row] = len(self.packed)
            self.packed.append(row)
            self.first.append(len(self.ids))
            self.ids.extend(ids)
            self.types.extend(types)
            self.positions.extend(range(len(ids)))
            self.segment_lengths.append(len(ids))
            self.piece_rows.append(row)

    def add_padding(self, count: int) -> None:
        """Put so many tokens behind the last row."""
        if count:
            padding = array("q", bytes(8 * count))
            self.ids += padding
            self.types += padding
            self.positions += padding
            self.segment_lengths.append(count)
            self.piece_rows.append(self.packed[-1])

    def repeat_row(self, times: int) -> None:
        """Fill up the packed rows with the last one."""
        self.packed += self.packed[-1:] * times
        self.first += self.first[-1:] * times


def pack(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    device: torch.device | str = "cpu",
    keys: Sequence[int] | None = None,
    *,
    windows: bool = True,
) -> PackedBatch:
    """Lay rows into windows, or end to end.

    Args:
        rows: (input ids, token type ids) of each row, at least one token a row.
        device: where the tensors shall be; they come there in one copy.
        keys: rows of one key lie side by side, those of the lowest key first; None lets all share
            windows, which takes the least padding.
        windows: for attention that works on rows of one length; without, padding only brings the
            tokens of each key to a size that batches often have.
    """
    lengths: dict[int, dict[int, int]] = {}
    for row, (ids, _) in enumerate(rows):
        lengths.setdefault(0 if keys is None else keys[row], {})[row] = len(ids)
    layout = _Layout(rows)
    spans = {}
    for key in sorted(lengths):
        tokens, packed = len(layout.ids), len(layout.packed)
        if windows:
            filled = _fill_windows(lengths[key])
            for _, block in groupby(filled, key=lambda window: window.width):
                layout.add_block(list(block))
        else:
            layout.add_rows(lengths[key])
            count = len(layout.ids) - tokens
            layout.add_padding(_usual(count) - count)
        count = len(layout.packed) - packed
        layout.repeat_row(_round_up(count) - count)
        spans[key] = KeySpan(slice(tokens, len(layout.ids)), slice(packed, len(layout.packed)))
    return _to_tensors(layout, spans, torch.device(device))


def _fill_windows(lengths: dict[int, int]) -> list[_Window]:
    """Share out rows among windows: longest first, each where the least room stays; narrow first.

    Args:
        lengths: tokens of each row.
    """
    windows: list[_Window] = []
    room: list[tuple[int, int]] = []  # (free tokens, window), in order
    for row in sorted(lengths, key=lengths.__getitem__, reverse=True):
        length = lengths[row]
        at = bisect_left(room, (length, 0))
        if at == len(room):
            # Powers of two leave room for a few short rows beside a long one.
            windows.append(_Window(free=max(_WINDOW, 1 << (length - 1).bit_length())))
            number = len(windows) - 1
        else:
            number = room.pop(at)[1]
        window = windows[number]
        window.rows.append(row)
        window.used += length
        window.free -= length
        insort(room, (window.free, number))
    grain = _GRAIN if len(windows) > 1 else _FINE_GRAIN
    for window in windows:
        window.width = -(-window.used // grain) * grain
    return sorted(windows, key=lambda window: window.width)


def packed_sizes(max_tokens: int) -> list[int]:
    """Numbers of lines, tokens or packed rows, that rows end to end come in: for so many tokens.

    Batches with keys, and rows longer than the budget, add more.
    """
    tokens = {_usual(count) for count in range(1, max_tokens + 1)}
    rows = {_round_up(count) for count in range(1, min(_MOST_ROWS, max_tokens) + 1)}
    return sorted(tokens | rows)


def _usual(count: int) -> int:
    """Tokens for so many end to end: few different numbers, and no more than 3 or 3 % more.

    A product takes longer with every line, but for each number of lines it is compiled.
    """
    grain = max(_FINEST_GRAIN, min(_GRAIN, 1 << max(0, count.bit_length() - 6)))
    return -(-count // grain) * grain


def _round_up(count: int) -> int:
    """Packed rows for so many, padding included: few different numbers, for the same reason."""
    return -(-count // 16) * 16 if count > 16 else 1 << (count - 1).bit_length()


def _to_tensors(layout: _Layout, spans: dict[int, KeySpan], device: torch.device) -> PackedBatch:
    """The batch on its device, brought there by a single copy."""
    lengths = torch.tensor(layout.segment_lengths)
    piece = torch.arange(len(lengths)).repeat_interleave(lengths)  # [N]
    parts = [
        torch.frombuffer(layout.ids, dtype=torch.int64),
        torch.frombuffer(layout.types, dtype=torch.int64),
        torch.frombuffer(layout.positions, dtype=torch.int64),
        torch.tensor(layout.piece_rows)[piece],
        torch.tensor(layout.packed),
        torch.tensor(layout.first),
        torch.tensor(layout.packed_row),
        piece,
    ]
    if device.type != "cpu":
        whole = torch.cat(parts).to(device)
        parts = list(torch.split(whole, [len(part) for part in parts]))
    ids, types, positions, row_of_token, row_at_position, first, packed_row, on_device = parts
    return PackedBatch(
        input_ids=ids,
        token_type_ids=types,
        position_ids=positions,
        row_of_token=row_of_token,
        row_at_position=row_at_position,
        first_token=first,
        position_of_row=packed_row,
        segment_lengths=lengths,
        position_lengths=torch.tensor([len(layout.rows[row][0]) for row in layout.packed]),
        blocks=tuple(_with_allowed(block, piece, on_device) for block in layout.blocks),
        key_spans=spans,
    )


def _with_allowed(block: Block, piece: Tensor, on_device: Tensor) -> Block:
    """Tokens of one piece see each other; `piece` [N] is on the host, where looking is cheap."""
    shape = block.count, 1, block.width
    own = piece[block.tokens].view(shape)
    if torch.equal(own[..., :1].expand_as(own), own):  # windows of one piece each
        return block
    own = on_device[block.tokens].view(shape)
    return replace(block, allowed=own.unsqueeze(-1) == own.unsqueeze(-2))
