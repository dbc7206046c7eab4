"""Attention within the rows of a packed batch, fast in both directions.

Rows of equal length are one group and one unmasked product. PyTorch's fused attention is fast and
small forwards; on CPUs its backward pass is ten times slower than plain products in bfloat16, so
training on CPUs takes a backward pass made of those, which forms the attention weights anew instead
of keeping them (as in FlashAttention, Dao et al. 2022, arXiv:2205.14135, but not in tiles).

Legend: R rows, N tokens of all rows, Q queries (N, or R where only first tokens ask), H hidden
width, A heads, D = H / A; a group has `count` rows of `length` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.packing import Group


def attend(
    query: Tensor,
    key_value: Tensor,
    groups: Sequence[Group],
    num_heads: int,
    dropout: float = 0.0,
) -> Tensor:
    """Let each query look at the tokens of its own row.

    Args:
        query: [N, H], one a token, or [R, H], one a row.
        key_value: [N, 2H], key and value of each token side by side.
        groups: of the packed batch.
        num_heads: A.
        dropout: probability of dropping an attention weight.

    Returns:
        [Q, H], in the order of the queries.
    """
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or key_value.requires_grad)
    if needs_gradient and not dropout and query.device.type == "cpu":
        attended: Tensor = _Attention.apply(query, key_value, groups, num_heads)  # type: ignore[no-untyped-call]
        return attended
    return _forward(query, key_value, groups, num_heads, dropout)


def _forward(
    query: Tensor, key_value: Tensor, groups: Sequence[Group], num_heads: int, dropout: float
) -> Tensor:
    pieces = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
        for q, k, v in _blocks(query, key_value, groups, num_heads)
    ]
    return torch.cat([piece.flatten(0, 1) for piece in pieces])


def _blocks(
    query: Tensor, key_value: Tensor, groups: Sequence[Group], num_heads: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views of a group's query, key and value, each [count, A, length or 1, D]."""
    width = query.shape[1] // num_heads
    one_a_token = len(query) == len(key_value)
    for start, length, count, row in groups:
        at, asking = (start, length) if one_a_token else (row, 1)
        q = query[at : at + count * asking].view(count, asking, num_heads, width)
        both = key_value[start : start + count * length].view(count, length, 2, num_heads, width)
        k, v = both.permute(2, 0, 3, 1, 4)
        yield q.transpose(1, 2), k, v


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v for each group, with a backward pass of plain products."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_value: Tensor, groups: Sequence[Group], num_heads: int
    ) -> Tensor:
        ctx.save_for_backward(query, key_value)
        ctx.groups, ctx.num_heads = groups, num_heads
        return _forward(query, key_value, groups, num_heads, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key_value = torch.empty_like(key_value)
        blocks = (
            _blocks(first, second, ctx.groups, ctx.num_heads)
            for first, second in (
                (query, key_value),
                (grads[0].contiguous(), key_value),
                (grad_query, grad_key_value),
            )
        )
        for (q, k, v), (grad, _, _), (grad_q, grad_k, grad_v) in zip(*blocks, strict=True):
            q = q * q.shape[-1] ** -0.5
            weights = torch.softmax(q @ k.transpose(-1, -2), -1)
            grad_v.copy_(weights.transpose(-1, -2) @ grad)
            inner = torch._softmax_backward_data(
                grad @ v.transpose(-1, -2), weights, -1, weights.dtype
            )
            grad_q.copy_((inner @ k).mul_(q.shape[-1] ** -0.5))
            grad_k.copy_(inner.transpose(-1, -2) @ q)
        return grad_query, grad_key_value, None, None
