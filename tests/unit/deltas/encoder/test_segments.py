"""Attention in the rows of a flat batch, by the kernels that each device has for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import Size, flatten, unflatten
from deltas.encoder.segments import SegmentAttention, Segments, attend_in_segments

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LENGTHS = [20, 1, 33, 128, 7, 64]
FILLED = Size(sum(LENGTHS) + 40, len(LENGTHS) + 5, max(LENGTHS) + 3)


def seen(device: str, size: Size | None, per_position: bool) -> tuple[Segments, Tensor]:
    """What a batch of these lengths looks at, and where its rows begin."""
    flat = flatten([([1] * length, [0] * length) for length in LENGTHS], size)
    batch = unflatten(flat.numbers.to(device), flat.size)
    attention = SegmentAttention(batch)
    return attention.of_first_tokens if per_position else attention.of_tokens, batch.first_token


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("size", [None, FILLED])
@pytest.mark.parametrize(("heads", "depth"), [(12, 32), (2, 64), (3, 12), (12, 26)])
def test_each_row_gets_what_pytorch_gives_it(
    device: str, dtype: torch.dtype, per_position: bool, size: Size | None, heads: int, depth: int
) -> None:
    """As views of one product, like the encoder's; NaN behind the rows reaches none of them."""
    is_bf16 = dtype == torch.bfloat16
    if device == "cuda" and is_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    segments, first = seen(device, size, per_position)
    num_tokens, width = sum(LENGTHS), heads * depth
    mixed = torch.randn(num_tokens, 3 * width, generator=torch.Generator().manual_seed(0))
    filled = torch.full((FILLED.tokens if size else num_tokens, 3 * width), float("nan"))
    filled[:num_tokens] = mixed
    query, key_value = filled.to(device, dtype).split([width, 2 * width], 1)
    asking = query[first] if per_position else query
    out = attend_in_segments(asking, key_value, segments, heads).cpu().double()
    done = 0
    for number, row in enumerate(mixed.to(dtype).double().split(LENGTHS)):
        q, k, v = row.view(len(row), 3, heads, depth).permute(1, 2, 0, 3)
        wanted = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        mine = out[number : number + 1] if per_position else out[done : done + len(row)]
        torch.testing.assert_close(
            mine, wanted[:1] if per_position else wanted, atol=TOLERANCE[dtype], rtol=0
        )
        done += len(row)


@pytest.mark.parametrize("size", [None, FILLED])
def test_kernels_are_told_how_long_segments_may_be(size: Size | None) -> None:
    """A kernel leaves out what is longer than it was told."""
    longest = size.longest if size else max(LENGTHS)
    (tokens, _), (rows, _) = (
        seen("cpu", size, per_position=per_position) for per_position in (False, True)
    )
    assert (tokens.most_asking, tokens.most_tokens) == (longest, longest)
    assert (rows.most_asking, rows.most_tokens) == (1, longest)
    for segments in (tokens, rows):
        assert int(segments.asking.diff().max()) <= segments.most_asking
        assert int(segments.tokens.diff().max()) <= segments.most_tokens


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [32, 26])
def test_devices_other_than_the_cpu_are_told_where_rows_begin_and_wait_for_nothing(
    dtype: torch.dtype, depth: int
) -> None:
    """On a device that holds no values: whoever asked for one would fail."""
    segments, _ = seen("meta", FILLED, per_position=False)
    assert segments.tokens.dtype == torch.int32  # what the kernels take
    query, key_value = torch.empty(FILLED.tokens, 36 * depth, device="meta", dtype=dtype).split(
        [12 * depth, 24 * depth], 1
    )
    out = attend_in_segments(query, key_value, segments, 12)
    assert (out.shape, out.dtype, out.device.type) == (query.shape, dtype, "meta")


def test_it_is_for_inference() -> None:
    flat = flatten([([1] * length, [0] * length) for length in LENGTHS])
    attention = SegmentAttention(unflatten(flat.numbers, flat.size))
    query = torch.randn(sum(LENGTHS), 24, requires_grad=True)
    with pytest.raises(ValueError, match="are for inference"):
        attention.tokens(query, torch.randn(sum(LENGTHS), 48), 2)
