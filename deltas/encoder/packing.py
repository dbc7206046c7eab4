"""Packs rows of different lengths into one batch, with little padding.

Two layouts:

- **Windows**, for training and the reference (`deltas.encoder.window_attention`). Several short
  rows share a window, and one attention call covers all windows of a width, under a mask that keeps
  rows apart. No row is padded to the longest one, and the number of calls does not grow with the
  number of different lengths. Window widths are multiples of 32 tokens, which CPU kernels like
  best.
- **End to end**, for serving on CPUs (`deltas.encoder.row_attention`): rows are concatenated.

The last layer computes *positions* only, the tokens that pooling reads: the first token of most
rows, and every token of a row whose pooled output is a mean.

A batch comes in few total sizes, because oneDNN compiles a kernel for each new shape (in
milliseconds) and soon has compiled all of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

_WIDTH_STEP = 32  # tokens; window widths are multiples of it
_LONE_WIDTH_STEP = 16  # tokens, if a batch has one window, where padding would cost most
_MIN_SIZE_STEP = 4  # tokens; small batches of rows end to end have multiples of it
_USUAL_POSITIONS = 512  # most positions of a usual batch
_MIN_CAPACITY = 64  # tokens that a window can hold at least, before its unused end is cut off


@dataclass(frozen=True)
class Block:
    """The windows of one width, which lie side by side.

    `allowed` is bool [W, 1, L, L]: True if a token (third axis) attends to another (last axis). It
    is None if every token attends to its whole window.
    """

    tokens: slice
    positions: slice  # equally many in each window
    count: int  # W
    width: int  # L
    allowed: Tensor | None


@dataclass(frozen=True)
class KeySpan:
    """Ranges of the tokens and of the positions of one key's rows."""

    tokens: slice
    positions: slice


@dataclass(frozen=True)
class PackedBatch:
    """Rows of a batch as the encoder reads them.

    A *segment* is a row, or padding, within the batch. Padding tokens attend to each other only and
    count as tokens of a neighbouring row. A *position* is a token of the last layer's output that
    pooling reads. The positions of rows with cls pooling come first, one for each row; those of
    rows with mean pooling follow, one for each token. Some repeat another one to fill up the batch.
    All tensors are int64.
    """

    input_ids: Tensor  # [N]
    token_type_ids: Tensor  # [N]
    position_ids: Tensor  # [N], 0 at the start of each row and in padding
    row_of_token: Tensor  # [N], input row of each token
    token_at_position: Tensor  # [P], the token of each position
    row_at_position: Tensor  # [P], input row of each position
    first_token_of_row: Tensor  # [R], index of each input row's first token
    pooled_of_row: Tensor  # [R], each input row's place among the cls positions, then the means
    # Where the positions of each mean begin, counted from `num_cls`, and where the last one ends.
    # Padding has means, too, which no row reads.
    mean_offsets: Tensor
    segment_lengths: Tensor  # number of tokens of each segment, in order; on the host
    # Runs of neighbouring positions of one segment: the segment, and the number of positions.
    run_segments: Tensor  # on the host
    run_lengths: Tensor  # on the host
    num_cls: int  # positions of rows with cls pooling; 0 if the positions are all tokens in order
    every_layer: bool  # whether to pool the means of all layers, side by side
    blocks: tuple[Block, ...]  # the windows; empty if rows lie end to end
    key_spans: dict[int, KeySpan]  # ranges of the rows of each key


@dataclass
class _Window:
    """Rows that share a window; `free` tokens are left, `width` is set once all rows are in."""

    free: int
    rows: list[int] = field(default_factory=list)
    used: int = 0
    width: int = 0


class _Layout:
    """A batch while it is laid out, as plain lists; `mean` is the pooling of the rows that follow.

    Once `mean` is True, it stays so: rows with cls pooling come first.
    """

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        self.rows = rows
        self.mean = False
        self.ids = array("q")
        self.types = array("q")
        self.position_ids = array("q")
        self.segment_lengths: list[int] = []
        self.segment_rows: list[int] = []
        self.token_at_position = array("q")
        self.run_segments: list[int] = []
        self.run_lengths: list[int] = []
        self.num_cls = 0
        self.mean_offsets = [0]
        self.first_token_of_row = [0] * len(rows)
        self.pooled_of_row = [0] * len(rows)
        self.blocks: list[Block] = []  # `allowed` is filled in last

    def add_block(self, windows: Sequence[_Window], width: int) -> None:
        """Lay out windows of one width."""
        each = max(len(window.rows) for window in windows)
        token, position = len(self.ids), len(self.token_at_position)
        for window in windows:
            self.add_rows(window.rows)
            self.add_padding(width - window.used)
            if not self.mean:
                self.repeat_position(each - len(window.rows))
        tokens = slice(token, len(self.ids))
        positions = slice(position, len(self.token_at_position))
        self.blocks.append(Block(tokens, positions, len(windows), width, None))

    def add_rows(self, rows: Iterable[int]) -> None:
        """Lay out rows end to end."""
        for row in rows:
            ids, types = self.rows[row]
            self.first_token_of_row[row] = len(self.ids)
            self.pooled_of_row[row] = self.num_cls + len(self.mean_offsets) - 1
            self._add_run(len(ids) if self.mean else 1)
            self.ids.extend(ids)
            self.types.extend(types)
            self.position_ids.extend(range(len(ids)))
            self.segment_lengths.append(len(ids))
            self.segment_rows.append(row)

    def add_padding(self, count: int) -> None:
        """Append `count` padding tokens after the last row."""
        if count:
            if self.mean:
                self._add_run(count)
            padding = array("q", bytes(8 * count))
            self.ids += padding
            self.types += padding
            self.position_ids += padding
            self.segment_lengths.append(count)
            self.segment_rows.append(self.segment_rows[-1])

    def repeat_position(self, times: int) -> None:
        """Repeat the last position."""
        if times:
            self.token_at_position.extend(self.token_at_position[-1:] * times)
            self._count_run(self.run_segments[-1], times)

    def _add_run(self, count: int) -> None:
        """Make positions of the first tokens of the segment that is about to be laid out."""
        self.token_at_position.extend(range(len(self.ids), len(self.ids) + count))
        self._count_run(len(self.segment_lengths), count)

    def _count_run(self, segment: int, count: int) -> None:
        self.run_segments.append(segment)
        self.run_lengths.append(count)
        if self.mean:
            self.mean_offsets.append(self.mean_offsets[-1] + count)
        else:
            self.num_cls += count


def pack(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    device: torch.device | str = "cpu",
    keys: Sequence[int] | None = None,
    *,
    mean: Sequence[bool] | bool = False,
    every_layer: bool = False,
    windows: bool = True,
) -> PackedBatch:
    """Lay rows into windows, or end to end.

    Args:
        rows: (input ids, token type ids) of each row, at least one token each.
        device: device of the tensors; one copy brings all of them there.
        keys: a key for each row; rows of one key lie side by side, lowest key first, but keys with
            mean pooling last. None lets all rows share windows, which takes the least padding.
        mean: for each row, or for all of them, whether to pool by the mean of the tokens; at most
            one key may have rows of both kinds.
        every_layer: whether to pool the means of the embeddings and of all layers, side by side.
        windows: if False, rows are concatenated, and the tokens of each key are padded only up to
            the next common size, so that oneDNN finds a compiled kernel.
    """
    layout = _Layout(rows)
    spans = {}
    for key, of_key in _by_key_and_pooling(rows, keys, mean):
        token, position = len(layout.ids), len(layout.token_at_position)
        for is_mean, lengths in of_key.items():
            layout.mean = is_mean
            if windows:
                filled = _fill_windows(lengths)
                for width, block in groupby(filled, key=lambda window: window.width):
                    layout.add_block(list(block), width)
            else:
                layout.add_rows(lengths)
            if not is_mean:
                count = len(layout.token_at_position) - position
                layout.repeat_position(_common_positions(count) - count)
        if not windows:
            count = len(layout.ids) - token
            layout.add_padding(_common_tokens(count) - count)
            if len(of_key) == 2:
                count = len(layout.token_at_position) - position
                layout.repeat_position(_common_tokens(count) - count)
        tokens = slice(token, len(layout.ids))
        spans[key] = KeySpan(tokens, slice(position, len(layout.token_at_position)))
    return _to_tensors(layout, spans, torch.device(device), every_layer=every_layer)


def _by_key_and_pooling(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    keys: Sequence[int] | None,
    mean: Sequence[bool] | bool,
) -> list[tuple[int, dict[bool, dict[int, int]]]]:
    """Group row lengths by key, then by pooling; sort so that all rows with cls pooling lead."""
    groups: dict[int, tuple[dict[int, int], dict[int, int]]] = {}  # cls, mean
    for row, (ids, _) in enumerate(rows):
        key = 0 if keys is None else keys[row]
        is_mean = mean if isinstance(mean, bool) else mean[row]
        groups.setdefault(key, ({}, {}))[is_mean][row] = len(ids)
    if len(mixed := [key for key, (cls, means) in groups.items() if cls and means]) > 1:
        raise ValueError(f"rows of the keys {mixed} can't all lie side by side: poolings differ")
    order = sorted(groups, key=lambda key: (bool(groups[key][1]) - bool(groups[key][0]), key))
    return [
        (key, {bool(n): lengths for n, lengths in enumerate(groups[key]) if lengths})
        for key in order
    ]


def _fill_windows(lengths: dict[int, int]) -> list[_Window]:
    """Distribute rows to windows, best fit and longest row first; return narrow windows first."""
    windows: list[_Window] = []
    free: list[tuple[int, int]] = []  # (free tokens, window), sorted
    for row in sorted(lengths, key=lengths.__getitem__, reverse=True):
        length = lengths[row]
        at = bisect_left(free, (length, 0))
        if at == len(free):
            # Powers of two leave space for a few short rows beside a long one.
            number = len(windows)
            windows.append(_Window(free=max(_MIN_CAPACITY, 1 << (length - 1).bit_length())))
        else:
            number = free.pop(at)[1]
        window = windows[number]
        window.rows.append(row)
        window.used += length
        window.free -= length
        insort(free, (window.free, number))
    step = _WIDTH_STEP if len(windows) > 1 else _LONE_WIDTH_STEP
    for window in windows:
        window.width = -(-window.used // step) * step
    return sorted(windows, key=lambda window: window.width)


def packed_sizes(max_tokens: int) -> list[int]:
    """List the numbers of tokens and of positions that rows end to end are filled up to.

    Batches with keys, and rows longer than `max_tokens`, add more.
    """
    # A batch of both poolings may have a few more positions than tokens.
    tokens = {_common_tokens(count) for count in range(1, max_tokens + 16)}
    counts = range(1, min(_USUAL_POSITIONS, max_tokens) + 1)
    return sorted(tokens | {_common_positions(count) for count in counts})


def _common_tokens(count: int) -> int:
    """Round a number of tokens up to one of few sizes, by at most 3 tokens or 3 %.

    A product takes longer with every token, but oneDNN compiles it for each number of tokens.
    """
    step = max(_MIN_SIZE_STEP, min(_WIDTH_STEP, 1 << max(0, count.bit_length() - 6)))
    return -(-count // step) * step


def _common_positions(count: int) -> int:
    """Round a number of positions up to one of few sizes, for the same reason."""
    return -(-count // 16) * 16 if count > 16 else 1 << (count - 1).bit_length()


def _to_tensors(
    layout: _Layout, spans: dict[int, KeySpan], device: torch.device, *, every_layer: bool
) -> PackedBatch:
    """Build the batch's tensors and bring them to the device in a single copy."""
    lengths = torch.tensor(layout.segment_lengths)
    segment = torch.arange(len(lengths)).repeat_interleave(lengths)  # [N]
    parts = {
        "input_ids": torch.frombuffer(layout.ids, dtype=torch.int64),
        "token_type_ids": torch.frombuffer(layout.types, dtype=torch.int64),
        "position_ids": torch.frombuffer(layout.position_ids, dtype=torch.int64),
        "row_of_token": torch.tensor(layout.segment_rows)[segment],
        "token_at_position": torch.frombuffer(layout.token_at_position, dtype=torch.int64),
        "first_token_of_row": torch.tensor(layout.first_token_of_row),
        "pooled_of_row": torch.tensor(layout.pooled_of_row),
        "mean_offsets": torch.tensor(layout.mean_offsets),
        "segment": segment,
    }
    parts["row_at_position"] = parts["row_of_token"][parts["token_at_position"]]
    if device.type != "cpu":
        sizes = [len(part) for part in parts.values()]
        whole = torch.cat(list(parts.values())).to(device)
        parts = dict(zip(parts, torch.split(whole, sizes), strict=True))
    on_device = parts.pop("segment")
    return PackedBatch(
        **parts,
        segment_lengths=lengths,
        run_segments=torch.tensor(layout.run_segments),
        run_lengths=torch.tensor(layout.run_lengths),
        num_cls=layout.num_cls,
        every_layer=every_layer,
        blocks=tuple(_with_allowed(block, segment, on_device) for block in layout.blocks),
        key_spans=spans,
    )


def _with_allowed(block: Block, segment: Tensor, on_device: Tensor) -> Block:
    """Let the tokens of a segment attend to each other.

    `segment` is int64 [N], the segment of each token, on the host, where reading values is cheap.
    """
    shape = block.count, 1, block.width
    of_window = segment[block.tokens].view(shape)
    if torch.equal(of_window[..., :1].expand_as(of_window), of_window):  # one segment each
        return block
    of_window = on_device[block.tokens].view(shape)
    return replace(block, allowed=of_window.unsqueeze(-1) == of_window.unsqueeze(-2))
