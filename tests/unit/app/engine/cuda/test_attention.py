"""Attention without padding equals PyTorch's, row by row, and reads nothing on the host."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.cuda.attention import VarlenAttention
from app.engine.cuda.batch import BatchShape, decode_batch, encode_batch

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
FILLED = BatchShape(sum(LENGTHS) + 40, len(LENGTHS) + 5, max(LENGTHS) + 3)


def attention_of(
    device: str, shape: BatchShape | None, *, mean: bool = False
) -> tuple[VarlenAttention, Tensor]:
    """The attention of a batch of these lengths, and the token of each position."""
    rows = [([1] * length, [0] * length) for length in LENGTHS]
    encoded = encode_batch(rows, shape, mean=[mean] * len(rows))
    batch = decode_batch(encoded.numbers.to(device), encoded.shape)
    return VarlenAttention(batch), batch.token_at_position


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("shape", [None, FILLED])
@pytest.mark.parametrize(("heads", "depth"), [(12, 32), (2, 64), (3, 12), (12, 26)])
def test_varlen_attention_equals_that_of_pytorch_for_each_row(
    device: str,
    dtype: torch.dtype,
    per_position: bool,
    shape: BatchShape | None,
    heads: int,
    depth: int,
) -> None:
    """Inputs are views, as in the encoder; NaN behind the rows reaches none of them."""
    is_bf16 = dtype == torch.bfloat16
    if device == "cuda" and is_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    attention, first = attention_of(device, shape)
    num_tokens, width = sum(LENGTHS), heads * depth
    mixed = torch.randn(num_tokens, 3 * width, generator=torch.Generator().manual_seed(0))
    filled = torch.full((FILLED.tokens if shape else num_tokens, 3 * width), float("nan"))
    filled[:num_tokens] = mixed
    query, key_value = filled.to(device, dtype).split([width, 2 * width], 1)
    if per_position:
        attended = attention.positions(query[first], key_value, heads)
    else:
        attended = attention.tokens(query, key_value, heads)
    out = attended.cpu().double()
    done = 0
    for number, row in enumerate(mixed.to(dtype).double().split(LENGTHS)):
        q, k, v = row.view(len(row), 3, heads, depth).permute(1, 2, 0, 3)
        wanted = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        mine = out[number : number + 1] if per_position else out[done : done + len(row)]
        torch.testing.assert_close(
            mine, wanted[:1] if per_position else wanted, atol=TOLERANCE[dtype], rtol=0
        )
        done += len(row)


@pytest.mark.parametrize("shape", [None, FILLED])
def test_kernels_are_given_upper_bounds_of_the_segments(shape: BatchShape | None) -> None:
    """A kernel skips tokens beyond the bound."""
    longest = shape.longest if shape else max(LENGTHS)
    attention, _ = attention_of("cpu", shape)
    tokens, rows = attention.of_tokens, attention.of_first_tokens
    assert (tokens.max_queries, tokens.max_keys) == (longest, longest)
    assert (rows.max_queries, rows.max_keys) == (1, longest)
    for segments in (tokens, rows):
        assert int(segments.cu_queries.diff().max()) <= segments.max_queries
        assert int(segments.cu_keys.diff().max()) <= segments.max_keys


@pytest.mark.parametrize("filled", [False, True])
def test_with_means_the_tokens_attend_after_the_first_ones(filled: bool) -> None:
    shape = FILLED._replace(with_means=True) if filled else None
    attention, token = attention_of("cpu", shape, mean=True)
    mixed = torch.randn(int(token.max()) + 1, 72, generator=torch.Generator().manual_seed(1))
    query, key_value = mixed.split([24, 48], 1)
    found = attention.positions(query[token], key_value, 2)
    of_tokens = attention.tokens(query, key_value, 2)
    is_real = token < sum(LENGTHS)  # what fills the batch up gets any values
    is_real[len(LENGTHS) : len(token) - len(mixed)] = False
    torch.testing.assert_close(found[is_real], of_tokens[token][is_real], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [32, 26])
def test_attention_on_a_device_reads_no_value_on_the_host(dtype: torch.dtype, depth: int) -> None:
    """The meta device holds no values, so that reading one would fail."""
    attention, _ = attention_of("meta", FILLED)
    assert attention.of_tokens.cu_keys.dtype == torch.int32  # what the kernels take
    query, key_value = torch.empty(FILLED.tokens, 36 * depth, device="meta", dtype=dtype).split(
        [12 * depth, 24 * depth], 1
    )
    out = attention.tokens(query, key_value, 12)
    assert (out.shape, out.dtype, out.device.type) == (query.shape, dtype, "meta")


def test_varlen_attention_is_for_inference() -> None:
    attention, _ = attention_of("cpu", None)
    query = torch.randn(sum(LENGTHS), 24, requires_grad=True)
    with pytest.raises(ValueError, match="are for inference"):
        attention.tokens(query, torch.randn(sum(LENGTHS), 48), 2)
