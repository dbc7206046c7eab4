"""Prepacked weights multiply as plain ones do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltas.kernels import linear
from deltas.kernels.linear import can_prepack, prepack
from tests.laws import law


def is_plain(multiply: Callable[[Tensor], Tensor]) -> bool:
    return isinstance(multiply, partial) and multiply.func is F.linear


@pytest.mark.skipif(not can_prepack(), reason="this PyTorch packs no matrices")
@law(60)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 90),
    count=st.integers(0, 70),
    seed=st.integers(0, 1000),
)
def test_prepacked_weights_give_the_same_products(
    height: int, width: int, count: int, seed: int
) -> None:
    """Whole numbers make both exact; x is a part of a matrix, the weight a view."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Any:
        return torch.randint(-3, 4, shape, generator=generator).bfloat16()

    weight, x = whole(width, height).t(), whole(count + 2, width)[1:-1]
    expected = x @ weight.t()
    assert torch.equal(prepack(weight)(x), expected)
    assert torch.equal(prepack(weight.float())(x.float()).bfloat16(), expected)


def test_weights_stay_plain_where_nothing_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no oneDNN")

    can_prepack.cache_clear()
    monkeypatch.setattr(linear, "_prepacked", refuse)
    try:
        assert is_plain(prepack(torch.zeros(4, 4).bfloat16()))
    finally:
        can_prepack.cache_clear()


def test_float32_weights_stay_plain() -> None:
    """Prepacking gains little there, and oneDNN keeps 1.4 MB of code for each number of rows."""
    assert is_plain(prepack(torch.zeros(4, 4)))
