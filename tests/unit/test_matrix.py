"""Matrices as CPUs multiply by them: packed ones compute what plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app import matrix
from app.matrix import MOST_PACKED, PackedMatrix, PlainMatrix, can_pack, matrix_of

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(dtype)]


@pytest.mark.skipif(not DTYPES, reason="this PyTorch packs no matrices")
@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 90),
    lines=st.integers(0, 150),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_packed_multiplies_as_plain(
    height: int, width: int, lines: int, dtype: torch.dtype, seed: int
) -> None:
    """With whole numbers, so that both are exact; also of a view, and a part of the lines."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Any:
        return torch.randint(-3, 4, shape, generator=generator).to(dtype)

    weight, x = whole(width, height).t(), whole(lines + 2, width)[1:-1]
    expected = x @ weight.t()
    assert torch.equal(PackedMatrix(weight).multiply(x), expected)
    assert torch.equal(PlainMatrix(weight).multiply(x), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_products_in_float32_are_plain(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They gain nothing, and oneDNN keeps megabytes of code for every number of lines."""
    plain, multiply = [], F.linear

    def record(x: Tensor, weight: Tensor) -> Tensor:
        plain.append(len(x))
        return multiply(x, weight)

    monkeypatch.setattr(F, "linear", record)
    packed = PackedMatrix(torch.ones(8, 4, dtype=dtype))
    for lines in (1, MOST_PACKED, MOST_PACKED + 1, 4096):
        assert torch.equal(
            packed.multiply(torch.ones(lines, 4, dtype=dtype)),
            torch.full((lines, 8), 4, dtype=dtype),
        )
    assert plain == ([MOST_PACKED + 1, 4096] if dtype == torch.float32 else [])


def test_stays_plain_where_nothing_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no oneDNN")

    can_pack.cache_clear()
    monkeypatch.setattr(matrix.PackedMatrix, "__init__", refuse)
    try:
        assert isinstance(matrix_of(torch.zeros(4, 4)), PlainMatrix)
    finally:
        can_pack.cache_clear()
