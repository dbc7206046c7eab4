"""Our attention equals PyTorch's, forwards and backwards, whatever lies in a window."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.encoder.packing import PackedBatch, pack
from deltas.encoder.window_attention import WindowAttention

HEADS, WIDTH = 3, 12


def rows_of(*lengths: int) -> list[tuple[list[int], list[int]]]:
    return [([7] * length, [0] * length) for length in lengths]


def row_by_row(
    query: Tensor,
    key_value: Tensor,
    batch: PackedBatch,
    lengths: tuple[int, ...],
    per_position: bool,
) -> Tensor:
    """Attend with PyTorch in each row by itself; zeros elsewhere."""
    out = torch.zeros_like(query)
    starts, places = batch.first_token_of_row.tolist(), batch.pooled_of_row.tolist()
    ends = [*range(batch.num_cls), *(batch.num_cls + batch.mean_offsets).tolist()]
    for start, place, length in zip(starts, places, lengths, strict=True):
        count = length if place >= batch.num_cls else 1
        first, count = (ends[place], count) if per_position else (start, length)
        asking = slice(first, first + count)
        parts = query[asking], *key_value[start : start + length].split(WIDTH, 1)
        q, k, v = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in parts)
        out[asking] = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
    return out


@pytest.mark.parametrize("lengths", [(5,), (40, 40), (1, 2, 3, 64, 90, 128, 17), (200, 3, 3, 150)])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("mean", ["none", "some", "all"])
def test_gradients_are_those_of_pytorch(
    lengths: tuple[int, ...], keyed: bool, per_position: bool, mean: str
) -> None:
    """Also where rows of several keys leave positions that belong to no window."""
    keys = [number % 2 for number in range(len(lengths))] if keyed else None
    means = [mean == "all" or (mean == "some" and bool(n % 2)) for n in range(len(lengths))]
    batch = pack(rows_of(*lengths), keys=keys, mean=means)
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = len(batch.input_ids)
    asking = len(batch.token_at_position) if per_position else tokens
    attention = WindowAttention(batch, torch.float64)
    attend = attention.positions if per_position else attention.tokens
    shapes = ((asking, WIDTH), (tokens, 2 * WIDTH), (asking, WIDTH))
    query, key_value, wanted = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    inputs = query.clone().requires_grad_(), key_value.clone().requires_grad_()
    theirs = row_by_row(*inputs, batch, lengths, per_position)
    is_of_a_row = (theirs.detach() != 0).any(1, keepdim=True)  # neither padding nor repeated
    their_grads = torch.autograd.grad(theirs, inputs, wanted)
    ours = attend(*inputs, HEADS)
    our_grads = torch.autograd.grad(ours, inputs, wanted * is_of_a_row)
    ours_then_grads = (ours * is_of_a_row, *our_grads)
    for found, expected in zip(ours_then_grads, (theirs, *their_grads), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    with torch.no_grad():
        assert torch.equal(attend(*inputs, HEADS), ours)


def test_rows_do_not_see_each_other() -> None:
    """Other rows in the same window change nothing, not even a gradient."""
    batch = pack(rows_of(10, 20, 30))
    query = torch.randn(len(batch.input_ids), WIDTH)
    key_value = torch.randn(len(batch.input_ids), 2 * WIDTH, requires_grad=True)
    out = WindowAttention(batch).tokens(query, key_value, HEADS)
    starts = sorted([*batch.token_at_position[:3].tolist(), 60])
    for start, stop in pairwise(starts):
        (grad,) = torch.autograd.grad(out[start:stop].sum(), key_value, retain_graph=True)
        assert bool(grad[start:stop].any())
        assert not bool(grad[:start].any())
        assert not bool(grad[stop:].any())
