"""Matrices as CPUs multiply by them: packed ones compute what plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltas.kernels import linear
from deltas.kernels.linear import PackedMatrix, PlainMatrix, can_pack, matrix_of


@pytest.mark.skipif(not can_pack(), reason="this PyTorch packs no matrices")
@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 90),
    lines=st.integers(0, 70),
    seed=st.integers(0, 1000),
)
def test_packed_multiplies_as_plain(height: int, width: int, lines: int, seed: int) -> None:
    """With whole numbers, so that both are exact; also of a view, and a part of the lines."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Any:
        return torch.randint(-3, 4, shape, generator=generator).bfloat16()

    weight, x = whole(width, height).t(), whole(lines + 2, width)[1:-1]
    expected = x @ weight.t()
    assert torch.equal(PackedMatrix(weight).multiply(x), expected)
    assert torch.equal(PlainMatrix(weight).multiply(x), expected)


def test_stays_plain_where_nothing_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no oneDNN")

    can_pack.cache_clear()
    monkeypatch.setattr(linear.PackedMatrix, "__init__", refuse)
    try:
        assert isinstance(matrix_of(torch.zeros(4, 4).bfloat16()), PlainMatrix)
    finally:
        can_pack.cache_clear()


def test_float32_stays_plain() -> None:
    """Packed, it gains little, and oneDNN keeps 1.4 MB of code for every number of lines."""
    assert isinstance(matrix_of(torch.zeros(4, 4)), PlainMatrix)
