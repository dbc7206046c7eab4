"""Attention within the rows of a packed batch, fast in both directions.

Rows lie in windows (`deltas.encoder.packing`); one call attends in all windows of a width, under a mask
that keeps rows apart. PyTorch's fused attention is fast and small forwards; on CPUs its backward
pass is many times slower than plain products in bfloat16 (measured: docs/performance.md), so
training on CPUs takes a backward pass made of those, which forms the attention weights anew instead
of keeping them.

Legend: N tokens of all windows, P packed rows, H hidden width, A heads, D = H / A; a block has C
windows of W tokens, in each of which Q tokens ask (W, or the first tokens of its packed rows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.encoder.packing import PackedBatch
from deltas.encoder.segments import Segments, attend_in_segments
from deltas.kernels.row_attention import Stretches, attend_in_stretches


class Windows(NamedTuple):
    """A block as attention sees it; `mask` [C, 1, Q, W] is added to scores, None where all see all.

    `asking` says where the block's queries lie, `tokens` where its keys and values do.
    """

    asking: slice
    tokens: slice
    num: int
    width: int
    mask: Tensor | None


@dataclass(frozen=True)
class Sight:
    """Who sees whom in a batch: when every token asks, and when only rows' first tokens do."""

    of_tokens: tuple[Windows, ...] | Stretches | Segments
    of_rows: tuple[Windows, ...] | Stretches | Segments


def sight(batch: PackedBatch, dtype: torch.dtype) -> Sight:
    """What a batch needs to know for attention, made once for all layers."""
    if batch.bounds is not None:
        return _segments(batch.bounds, batch.longest)
    if not batch.blocks:
        return _stretches(batch)
    of_tokens, of_rows = [], []
    for block in batch.blocks:
        mask = first = None
        if block.allowed is not None:
            zeros = torch.zeros_like(block.allowed, dtype=dtype)
            mask = zeros.masked_fill_(~block.allowed, -math.inf)  # [C, 1, W, W]
            lines = batch.first[block.rows] - block.tokens.start
            first = mask.view(-1, block.width)[lines].view(block.count, 1, -1, block.width)
        of_tokens.append(Windows(block.tokens, block.tokens, block.count, block.width, mask))
        of_rows.append(Windows(block.rows, block.tokens, block.count, block.width, first))
    return Sight(tuple(of_tokens), tuple(of_rows))


def _stretches(batch: PackedBatch) -> Sight:
    lengths = batch.piece_lengths
    starts = lengths.cumsum(0) - lengths
    packed = torch.arange(len(batch.first)), torch.ones_like(batch.first)
    return Sight(
        Stretches(starts, lengths, starts, lengths),
        Stretches(batch.first, batch.packed_lengths, *packed),
    )


def _segments(bounds: Tensor, longest: int) -> Sight:
    bounds = bounds.int()
    # A packed row has one query, also one that only fills up and sees nothing.
    one_each = torch.arange(len(bounds), dtype=torch.int32, device=bounds.device)
    return Sight(Segments(bounds, bounds, longest, longest), Segments(one_each, bounds, 1, longest))


def attend(
    query: Tensor,
    key_value: Tensor,
    windows: Sequence[Windows] | Stretches | Segments,
    num_heads: int,
    dropout: float = 0.0,
) -> Tensor:
    """Let each query look at the tokens that it may see.

    Args:
        query: [N, H], one a token, or [P, H], one a packed row.
        key_value: [N, 2H], key and value of each token side by side.
        windows: `of_tokens` or `of_rows` of the batch's sight.
        num_heads: A.
        dropout: probability of dropping an attention weight.

    Returns:
        The queries' shape; 0 for packed rows that belong to no window, anything for lines that
        belong to no row of a flat batch.
    """
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or key_value.requires_grad)
    if isinstance(windows, Stretches | Segments):
        if needs_gradient or dropout:
            raise ValueError("rows that lie end to end are for inference; pack them into windows")
        if isinstance(windows, Segments):
            return attend_in_segments(query, key_value, windows, num_heads)
        return attend_in_stretches(query, key_value, windows, num_heads)
    if needs_gradient and not dropout and query.device.type == "cpu":
        attended: Tensor = _Attention.apply(query, key_value, windows, num_heads)  # type: ignore[no-untyped-call]
        return attended
    return _forward(query, key_value, windows, num_heads, dropout)


def _forward(
    query: Tensor, key_value: Tensor, windows: Sequence[Windows], num_heads: int, dropout: float
) -> Tensor:
    pieces = []
    for window in windows:
        q, k, v = _heads(query, key_value, window, num_heads)
        out = F.scaled_dot_product_attention(q, k, v, window.mask, dropout)  # [C, A, Q, D]
        pieces.append(out.transpose(1, 2).reshape(-1, query.shape[1]))
    if sum(map(len, pieces)) == len(query):
        return torch.cat(pieces)
    attended = torch.zeros_like(query)  # some packed rows only fill up
    for window, piece in zip(windows, pieces, strict=True):
        attended[window.asking] = piece
    return attended


def _heads(
    query: Tensor, key_value: Tensor, window: Windows, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a block's query [C, A, Q, D], key and value [C, A, W, D]."""
    depth = query.shape[1] // num_heads
    q = query[window.asking].view(window.num, -1, num_heads, depth).transpose(1, 2)
    both = key_value[window.tokens].view(window.num, window.width, 2, num_heads, depth)
    k, v = both.permute(2, 0, 3, 1, 4)
    return q, k, v


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + mask) v in each window, with a backward pass of plain products."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_value: Tensor, windows: Sequence[Windows], num_heads: int
    ) -> Tensor:
        ctx.save_for_backward(query, key_value)
        ctx.windows, ctx.num_heads = windows, num_heads
        return _forward(query, key_value, windows, num_heads, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        grad_query, grad_key_value = torch.zeros_like(query), torch.zeros_like(key_value)
        for window in ctx.windows:
            q, k, v = (
                part.contiguous() for part in _heads(query, key_value, window, ctx.num_heads)
            )
            grad, _, _ = _heads(grad_out, key_value, window, ctx.num_heads)
            grad_q, grad_k, grad_v = _heads(grad_query, grad_key_value, window, ctx.num_heads)
            q = q * q.shape[-1] ** -0.5
            scores = q @ k.transpose(-1, -2)  # [C, A, Q, W]
            if window.mask is not None:
                scores += window.mask
            weights = torch.softmax(scores, -1)
            grad_v.copy_(weights.transpose(-1, -2) @ grad)
            inner = torch._softmax_backward_data(
                grad @ v.transpose(-1, -2), weights, -1, weights.dtype
            )
            grad_q.copy_((inner @ k).mul_(q.shape[-1] ** -0.5))
            grad_k.copy_(inner.transpose(-1, -2) @ q)
        return grad_query, grad_key_value, None, None
