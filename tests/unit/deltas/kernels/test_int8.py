"""Int8 rows and matrices: small errors, and rows that do not depend on their neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deltas.kernels.epilogue import (
    EpilogueOutput,
    LayerNormParams,
    PerRowVector,
    Product,
    apply_epilogue,
)
from deltas.kernels.int8 import Int8Matrix, Int8Rows, hadamard
from deltas.kernels.linear import int8_matmul

EPS = 1e-12


@pytest.mark.parametrize("size", [48, 64])
def test_a_row_does_not_depend_on_its_batch_neighbours(size: int) -> None:
    """Bit for bit, so that no int8 answer depends on them."""
    product = torch.randn(64, size, generator=torch.Generator().manual_seed(1))
    row_of = torch.arange(64) % 2
    tables = torch.randn(2, 2, size, generator=torch.Generator().manual_seed(2))

    def norm(row_of: Tensor) -> LayerNormParams:
        scale, shift = (PerRowVector(table, row_of) for table in tables)
        return LayerNormParams(scale, shift, EPS)

    together = Int8Rows.empty(*product.shape)
    apply_epilogue(Product(product), EpilogueOutput(int8=together), norm=norm(row_of))
    for row in range(64):
        one = slice(row, row + 1)
        alone = Int8Rows.empty(1, size)
        apply_epilogue(Product(product[one]), EpilogueOutput(int8=alone), norm=norm(row_of[one]))
        assert torch.equal(alone.values[0], together.values[row])
        assert torch.equal(alone.scales[0], together.scales[row])
        assert torch.equal(alone.offsets[0], together.offsets[row])


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_row_of_equal_values_is_exact(value: float) -> None:
    x = torch.full((1, 8), value)
    rows = Int8Rows.empty(*x.shape)
    apply_epilogue(Product(x), EpilogueOutput(int8=rows))
    assert rows.values.eq(0).all()
    assert rows.offsets.item() == value
    assert math.isfinite(rows.scales.item())


@pytest.mark.parametrize("size", [48, 64, 384])
def test_an_int8_product_is_about_that_of_the_floats(size: int) -> None:
    """Includes the offsets of the rows, which the row sums of the matrix bring in."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, size, generator=generator) + 4
    weight = torch.randn(36, size, generator=generator)
    rows, matrix = Int8Rows.empty(*x.shape), Int8Matrix.quantise(weight)
    apply_epilogue(Product(x), EpilogueOutput(int8=rows))
    out = torch.empty(20, 36)
    product = Product(int8_matmul(rows.values, matrix.values.t()), (rows, matrix))
    apply_epilogue(product, EpilogueOutput(out))
    exact = (rows.values * rows.scales[:, None]) @ (matrix.values * matrix.scales[:, None]).t()
    expected = exact + rows.offsets[:, None] * weight.sum(1)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(out, x @ weight.t(), atol=0.06 * size**0.5, rtol=0)


def test_the_hadamard_transform_is_its_own_inverse() -> None:
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    matrix = torch.ones(1, 1)
    for _ in range(6):
        matrix = torch.kron(matrix, pair)
    assert torch.equal(hadamard(torch.eye(64)), matrix / 8)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    assert torch.equal(hadamard(x[:, :100]), x[:, :100])


def test_a_few_large_channels_do_not_spoil_the_others() -> None:
    """Encoders have such channels; rounding untransformed rows doubles the error."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(100, 384, generator=generator)
    x[:, [30, 200]] *= 20
    weight = torch.randn(50, 384, generator=generator) * 0.05
    weight[:, [30, 200]] *= 0.05
    rows, matrix = Int8Rows.empty(*x.shape), Int8Matrix.quantise(weight)
    apply_epilogue(Product(x), EpilogueOutput(int8=rows))
    out = torch.empty(100, 50)
    apply_epilogue(
        Product(int8_matmul(rows.values, matrix.values.t()), (rows, matrix)),
        EpilogueOutput(out),
    )
    step = (x.amax(1) - x.amin(1)) / 254
    plain = step[:, None] * torch.round(x / step[:, None])
    error, plain_error = ((y - x @ weight.t()).square().mean() for y in (out, plain @ weight.t()))
    assert error < plain_error / 4
