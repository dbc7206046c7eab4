"""Attention in rows end to end equals PyTorch's attention in each row by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltas.encoder.packing import pack
from deltas.encoder.row_attention import RowAttention
from tests.laws import law

LAW = law(40)
# Relative to values of about 1. With a scale of 6, scores reach 300, where float32 has steps of
# 3e-5; weights move by as much, and outputs of up to 24 by 7e-4.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}

lengths = st.lists(st.integers(1, 150), min_size=1, max_size=12)
heads = st.sampled_from([(1, 16), (12, 32), (2, 64), (3, 4), (2, 24)])  # A, D


def reference(stacked: Tensor, num_heads: int) -> Tensor:
    """Attend in one row in float64: its query, key and value side by side [L, 3H] give [L, H]."""
    query, key, value = stacked.double().view(len(stacked), 3, num_heads, -1).permute(1, 2, 0, 3)
    return F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)


def attended(stacked: Tensor, sizes: list[int], num_heads: int, *, per_position: bool) -> Tensor:
    """Attend with our kernel from all tokens, or from first ones; padding is cut off."""
    batch = pack([([1] * size, [0] * size) for size in sizes], windows=False)
    attention = RowAttention(batch)
    padded = torch.full((len(batch.input_ids), stacked.shape[1]), 3.0, dtype=stacked.dtype)
    padded[: len(stacked)] = stacked
    width = stacked.shape[1] // 3
    query, key_value = padded[:, :width], padded[:, width:]
    if per_position:
        rows = attention.positions(query[batch.token_at_position], key_value, num_heads)
        assert rows.shape == (len(batch.token_at_position), width)
        return rows[batch.pooled_of_row]
    out = attention.tokens(query, key_value, num_heads)
    assert out.shape == query.shape
    assert bool(out[len(stacked) :].isfinite().all())
    return out[: len(stacked)]


def stacked_of(sizes: list[int], width: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    return (scale * torch.randn(sum(sizes), 3 * width, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_position", [False, True])
@LAW
@given(sizes=lengths, shape=heads, scale=st.sampled_from([0.1, 1.0, 6.0]))
def test_each_row_gets_what_pytorch_gives_it(
    sizes: list[int], shape: tuple[int, int], scale: float, dtype: torch.dtype, per_position: bool
) -> None:
    """With a scale of 6 scores are in the hundreds: all but the largest weights vanish."""
    num_heads, depth = shape
    stacked = stacked_of(sizes, num_heads * depth, dtype, scale)
    wanted = [reference(row, num_heads) for row in stacked.split(sizes)]
    expected = torch.cat([row[:1] for row in wanted] if per_position else wanted)
    found = attended(stacked, sizes, num_heads, per_position=per_position)
    assert found.dtype == dtype
    # Larger scores are rounded more coarsely, and weights follow them.
    tolerance = TOLERANCE[dtype] * scale * max(scale, 1) ** 2
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_nan_and_infinity_stay_in_their_row(bad: float, place: str) -> None:
    sizes, num_heads = [20, 33, 5], 2
    stacked = stacked_of(sizes, 32, torch.float32)
    sound = attended(stacked, sizes, num_heads, per_position=False)
    column = {"query": 0, "key": 32, "value": 64}[place]
    stacked[25, column : column + 32] = bad  # in the second row
    found = attended(stacked, sizes, num_heads, per_position=False)
    others = torch.ones(sum(sizes), dtype=torch.bool)
    others[20:53] = False
    assert torch.equal(found[others], sound[others])
    own = found[20:53]
    assert not bool((own[5] if place == "query" else own).isfinite().all())


@LAW
@given(sizes=lengths)
def test_batch_neighbours_change_no_bit(sizes: list[int]) -> None:
    stacked = stacked_of(sizes, 32, torch.bfloat16)
    together = attended(stacked, sizes, 1, per_position=False).split(sizes)
    for row, size, found in zip(stacked.split(sizes), sizes, together, strict=True):
        assert torch.equal(attended(row, [size], 1, per_position=False), found)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    sizes = [50, 3, 128, 90, 17] * 6
    stacked = stacked_of(sizes, 64, torch.float32)
    before = torch.get_num_threads()
    alone = attended(stacked, sizes, 2, per_position=False)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(attended(stacked, sizes, 2, per_position=False), alone)
    finally:
        torch.set_num_threads(before)


def test_tensors_that_do_not_fit_are_refused() -> None:
    batch = pack([([1] * 16, [0] * 16)], windows=False)
    attention = RowAttention(batch)
    query, key_value = torch.ones(16, 8), torch.ones(16, 16)
    with pytest.raises(ValueError, match="of one kind"):
        attention.tokens(query, key_value.bfloat16(), 2)
    with pytest.raises(ValueError, match="of one kind"):
        attention.tokens(query.double(), key_value.double(), 2)
    with pytest.raises(ValueError, match="rows of neighbouring values"):
        attention.tokens(query, torch.ones(16, 16).t(), 2)
    with pytest.raises(ValueError, match="for inference"):
        attention.tokens(query.requires_grad_(), key_value, 2)
    with pytest.raises(ValueError, match="for inference"):
        attention.tokens(query.detach(), key_value, 2, 0.1)
