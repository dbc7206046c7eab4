"""Vector instructions compute what numpy computes, at any address."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import pytest
import torch

from deltas.kernels.compiled import HADAMARD_SIZE, HEAD, WIDTH
from deltas.kernels.compiled.language import fetch_add
from deltas.kernels.compiled.simd import (
    TILE_ROWS,
    hadamard_floats,
    multiply_tile,
    read_floats,
    write_floats,
)
from deltas.kernels.int8 import hadamard
from deltas.kernels.runtime import FLOAT_CODES, Kernel


def _convert(arguments: Any) -> None:
    """Copy 16 values from one dtype to float32, times 2, and from there to another, times 3."""
    a = numba.carray(arguments, HEAD + 5, np.int64)
    while fetch_add(arguments, 1) < a[1]:
        read_floats(a[HEAD], a[HEAD + 1], a[HEAD + 2], np.float32(2))
        write_floats(a[HEAD + 3], a[HEAD + 2], a[HEAD + 4], np.float32(3))


def _multiply(arguments: Any) -> None:
    all_numbers = numba.carray(arguments, HEAD + 7, np.int64)
    while fetch_add(arguments, 1) < all_numbers[1]:
        a = all_numbers[HEAD:]
        multiply_tile(a[0], a[1], a[2], a[3], a[4], a[5], a[6])


def _transform(arguments: Any) -> None:
    a = numba.carray(arguments, HEAD + 1, np.int64)
    while fetch_add(arguments, 1) < a[1]:
        hadamard_floats(a[HEAD])


@cache
def kernel(name: str) -> Kernel:
    return Kernel(f"{__name__}:{name}")


def numbers(*shape: int) -> torch.Tensor:
    """Whole numbers, whose sums and products are exact in float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("source", FLOAT_CODES)
@pytest.mark.parametrize("target", FLOAT_CODES)
def test_sixteen_floats_are_read_and_written(source: torch.dtype, target: torch.dtype) -> None:
    x = numbers(WIDTH + 1).to(source)[1:]  # of no vector's alignment
    between, out = torch.empty(WIDTH), torch.empty(WIDTH + 1, dtype=target)[1:]
    codes = FLOAT_CODES[source], FLOAT_CODES[target]
    pointers = x.data_ptr(), between.data_ptr(), codes[1], out.data_ptr()
    kernel("_convert").launch(1, 1, codes[0], *pointers)
    assert torch.equal(between, 2 * x.float())
    assert torch.equal(out, (6 * x.float()).to(target))


@pytest.mark.parametrize("depth", [1, 7, 64])
def test_a_tile_is_a_matrix_product(depth: int) -> None:
    """Strides leave unused values between the rows of each matrix."""
    a, b = numbers(TILE_ROWS, depth + 3), numbers(depth, WIDTH + 5)
    out = torch.full((TILE_ROWS, WIDTH + 2), float("nan"))
    matrices = [(part.data_ptr(), part.shape[1]) for part in (out, a, b)]
    kernel("_multiply").launch(1, 1, *(value for pair in matrices for value in pair), depth)
    assert torch.equal(out[:, :WIDTH], a[:, :depth] @ b[:, :WIDTH])
    assert out[:, WIDTH:].isnan().all()


def test_the_hadamard_transform_is_that_of_torch() -> None:
    x = numbers(HADAMARD_SIZE)
    expected = hadamard(x[None])[0] * HADAMARD_SIZE**0.5
    kernel("_transform").launch(1, 1, x.data_ptr())
    assert torch.equal(x, expected)
