"""Attention within the rows of a packed batch, fast in both directions.

Windows of one width are one product, under a mask that keeps the rows of a window apart. PyTorch's
fused attention is fast and small forwards; on CPUs its backward pass is ten times slower than plain
products in bfloat16, so training on CPUs takes a backward pass made of those, which forms the
attention weights anew instead of keeping them (as in FlashAttention, Dao et al. 2022,
arXiv:2205.14135, but not in tiles).

Legend: N tokens and P packed rows, padding included; Q queries (N, or P where only first tokens
ask); H hidden width, A heads, D = H / A; of a block, C windows of W tokens, of which q ask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.packing import Block, PackedBatch

Masks = Sequence[Tensor | None]


def masks_of(batch: PackedBatch, dtype: torch.dtype) -> list[Tensor | None]:
    """What is added to each block's scores, [C, 1, W, W]: 0, or -inf where a token sees nothing."""
    return [
        None
        if block.allowed is None
        else torch.zeros_like(block.allowed, dtype=dtype).masked_fill_(~block.allowed, -math.inf)
        for block in batch.blocks
    ]


def attend(
    query: Tensor,
    key_value: Tensor,
    batch: PackedBatch,
    masks: Masks,
    num_heads: int,
    dropout: float = 0.0,
    *,
    per_row: bool = False,
) -> Tensor:
    """Let each query look at the tokens of its own row.

    Args:
        query: [N, H], or [P, H] if only first tokens ask.
        key_value: [N, 2H], key and value of each token side by side.
        batch: where they lie.
        masks: of the batch, in the dtype of the query.
        num_heads: A.
        dropout: probability of dropping an attention weight.
        per_row: whether there is one query a packed row rather than one a token.

    Returns:
        [Q, H], in the order of the queries; 0 for packed rows that belong to no block.
    """
    cuts = [
        _cut(batch, block, mask, per_row) for block, mask in zip(batch.blocks, masks, strict=True)
    ]
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or key_value.requires_grad)
    if needs_gradient and not dropout and query.device.type == "cpu":
        attended: Tensor = _Attention.apply(query, key_value, cuts, num_heads)  # type: ignore[no-untyped-call]
        return attended
    return _forward(query, key_value, cuts, num_heads, dropout)


@dataclass(frozen=True)
class _Cut:
    """One block's part of an attention.

    Attributes:
        queries: where its C x q queries lie.
        tokens: where its C x W tokens lie.
        count: windows, C.
        mask: [C, 1, q, W] or None.
    """

    queries: slice
    tokens: slice
    count: int
    mask: Tensor | None

    def views(
        self, query: Tensor, key_value: Tensor, num_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's query [C, A, q, D], key and value [C, A, W, D], as views."""
        width = query.shape[1] // num_heads
        asking = query[self.queries].view(self.count, -1, num_heads, width)
        both = key_value[self.tokens].view(self.count, -1, 2, num_heads, width)
        key, value = both.permute(2, 0, 3, 1, 4)
        return asking.transpose(1, 2), key, value


def _cut(batch: PackedBatch, block: Block, mask: Tensor | None, per_row: bool) -> _Cut:
    if not per_row:
        return _Cut(block.tokens, block.tokens, block.count, mask)
    if mask is not None:  # of each window only the lines of first tokens
        lines = batch.first[block.rows] - block.tokens.start
        mask = mask.view(-1, block.width)[lines].view(block.count, 1, -1, block.width)
    return _Cut(block.rows, block.tokens, block.count, mask)


def _forward(
    query: Tensor, key_value: Tensor, cuts: Sequence[_Cut], num_heads: int, dropout: float
) -> Tensor:
    pieces = []
    for cut in cuts:
        q, k, v = cut.views(query, key_value, num_heads)
        out = F.scaled_dot_product_attention(q, k, v, cut.mask, dropout)
        pieces.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    missing = len(query) - sum(len(piece) for piece in pieces)
    if not missing:
        return torch.cat(pieces)
    attended = torch.zeros_like(query)
    for cut, piece in zip(cuts, pieces, strict=True):
        attended[cut.queries] = piece
    return attended


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v for each block, with a backward pass of plain products."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_value: Tensor, cuts: Sequence[_Cut], num_heads: int
    ) -> Tensor:
        ctx.save_for_backward(query, key_value)
        ctx.cuts, ctx.num_heads = cuts, num_heads
        return _forward(query, key_value, cuts, num_heads, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        grad_query = torch.zeros_like(query)
        grad_key_value = torch.empty_like(key_value)
        for cut in ctx.cuts:
            q, k, v = cut.views(query, key_value, ctx.num_heads)
            grad, _, _ = cut.views(grad_out, key_value, ctx.num_heads)
            grad_q, grad_k, grad_v = cut.views(grad_query, grad_key_value, ctx.num_heads)
            scale = q.shape[-1] ** -0.5
            q = q * scale
            scores = q @ k.transpose(-1, -2)
            if cut.mask is not None:
                scores += cut.mask
            weights = torch.softmax(scores, -1)
            grad_v.copy_(weights.transpose(-1, -2) @ grad)
            inner = torch._softmax_backward_data(
                grad @ v.transpose(-1, -2), weights, -1, weights.dtype
            )
            grad_q.copy_((inner @ k).mul_(scale))
            grad_k.copy_(inner.transpose(-1, -2) @ q)
        return grad_query, grad_key_value, None, None
