"""Attention within the rows of a packed batch whose rows lie in padded windows.

Training uses it, and every device but the CPU; CPU serving attends in rows end to end
(`deltas.encoder.row_attention`). One call of PyTorch's fused attention covers all windows of one
width, under a mask that keeps the rows of a window apart. On CPUs the backward pass of the fused
attention is many times slower than plain matrix products in bfloat16 (measured:
docs/performance/log.md). Training on CPUs therefore takes a backward pass made of matrix products,
which recomputes the attention weights instead of keeping them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.encoder.encoder import Attention
from deltas.encoder.packing import PackedBatch
from deltas.kernels.private_apis import softmax_backward


class _Windows(NamedTuple):
    """The windows of one width, and the queries that each of them has."""

    queries: slice  # of the query tensor, equally many for each window
    tokens: slice
    num: int  # W
    width: int  # L
    mask: Tensor | None  # [W, 1, queries, L], added to the scores; None to see the whole window


class WindowAttention(Attention):
    """Attention in padded windows, differentiable, on any device; `dtype` is that of the queries.

    Positions that only fill up a batch and belong to no window get zeros.
    """

    def __init__(self, batch: PackedBatch, dtype: torch.dtype = torch.float32) -> None:
        self._tokens, self._positions = [], []
        for block in batch.blocks:
            mask = of_positions = None
            if block.allowed is not None:
                zeros = torch.zeros_like(block.allowed, dtype=dtype)
                mask = zeros.masked_fill_(~block.allowed, -math.inf)  # [W, 1, L, L]
                asking = batch.token_at_position[block.positions] - block.tokens.start
                of_positions = mask.view(-1, block.width)[asking]
                of_positions = of_positions.view(block.count, 1, -1, block.width)
            shape = block.tokens, block.count, block.width
            self._tokens.append(_Windows(block.tokens, *shape, mask))
            self._positions.append(_Windows(block.positions, *shape, of_positions))

    def tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        return _attend(query, key_value, self._tokens, num_heads, dropout)

    def positions(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        return _attend(query, key_value, self._positions, num_heads, dropout)


def _attend(
    query: Tensor, key_value: Tensor, windows: Sequence[_Windows], num_heads: int, dropout: float
) -> Tensor:
    wants_gradient = torch.is_grad_enabled() and (query.requires_grad or key_value.requires_grad)
    if wants_gradient and not dropout and query.device.type == "cpu":
        attended: Tensor = _Attention.apply(query, key_value, windows, num_heads)  # type: ignore[no-untyped-call]
        return attended
    return _forward(query, key_value, windows, num_heads, dropout)


def _forward(
    query: Tensor, key_value: Tensor, windows: Sequence[_Windows], num_heads: int, dropout: float
) -> Tensor:
    outputs = []
    for window in windows:
        q, k, v = _heads(query, key_value, window, num_heads)
        out = F.scaled_dot_product_attention(q, k, v, window.mask, dropout)  # [W, A, queries, D]
        outputs.append(out.transpose(1, 2).reshape(-1, query.shape[1]))
    if sum(map(len, outputs)) == len(query):
        return torch.cat(outputs)
    attended = torch.zeros_like(query)  # some positions only fill up the batch
    for window, output in zip(windows, outputs, strict=True):
        attended[window.queries] = output
    return attended


def _heads(
    query: Tensor, key_value: Tensor, window: _Windows, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of the windows' query [W, A, queries, D], key and value [W, A, L, D]."""
    depth = query.shape[1] // num_heads
    q = query[window.queries].view(window.num, -1, num_heads, depth).transpose(1, 2)
    both = key_value[window.tokens].view(window.num, window.width, 2, num_heads, depth)
    k, v = both.permute(2, 0, 3, 1, 4)
    return q, k, v


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + mask) v in each window; the backward pass is matrix products."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_value: Tensor, windows: Sequence[_Windows], num_heads: int
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
            views = _heads(query, key_value, window, ctx.num_heads)
            q, k, v = (view.contiguous() for view in views)
            grad, _, _ = _heads(grad_out, key_value, window, ctx.num_heads)
            grad_q, grad_k, grad_v = _heads(grad_query, grad_key_value, window, ctx.num_heads)
            q = q * q.shape[-1] ** -0.5
            scores = q @ k.transpose(-1, -2)  # [W, A, queries, L]
            if window.mask is not None:
                scores += window.mask
            weights = torch.softmax(scores, -1)
            grad_v.copy_(weights.transpose(-1, -2) @ grad)
            inner = softmax_backward(grad @ v.transpose(-1, -2), weights)
            grad_q.copy_((inner @ k).mul_(q.shape[-1] ** -0.5))
            grad_k.copy_(inner.transpose(-1, -2) @ q)
        return grad_query, grad_key_value, None, None
