"""Finishes a matrix product in one pass over its results, on a CPU (GEMM epilogue).

Each row of the product gets, in this order and as asked for: the sparse update of its task's
matrix, its task's bias, a residual, GELU, and a LayerNorm with its task's scale and shift. It is
written as floats, as int8 for the next product, or both. PyTorch reads and writes the whole batch
for each of these steps, which takes as long as the products where those are fast.

`apply_epilogue` is the only entry; `deltas.encoder.cpu` calls it after every product. The kernel
handles a few rows at a time, so that their values stay in the innermost cache until they are
written. Loops over a row are plain, so that the compiler vectorises them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from numba import carray
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from deltas.kernels.int8 import Int8Matrix, Int8Rows, quantise_row
from deltas.kernels.runtime import (
    DTYPE_CODES,
    FLOAT_CODES,
    Kernel,
    as_pointer,
    compiled,
    data_pointer,
    dtype_and_pointer,
    fetch_add,
    read_row,
    write_row,
)

# K, and the addresses of a sparse update's rows, columns and values; see `sparse_update`.
SparseUpdate = tuple[int, int, int, int]
NO_UPDATE: SparseUpdate = 0, 0, 0, 0


def sparse_update(rows: Tensor, columns: Tensor, values: Tensor) -> SparseUpdate:
    """Return pointers to a sparse update of a shared matrix, whose tensors must stay alive.

    Args:
        rows: int32 [K], output rows of the matrix.
        columns: int32 [K].
        values: float32 [K], added to the shared matrix at (row, column).

    Raises:
        ValueError: a tensor has another shape or dtype, or is not contiguous.
    """
    shape = (len(rows),)
    return (
        len(rows),
        data_pointer(rows, shape, torch.int32),
        data_pointer(columns, shape, torch.int32),
        data_pointer(values, shape),
    )


@dataclass(frozen=True)
class SparseCorrection:
    """Sparse updates of the shared matrix that a product with it does not contain yet."""

    x: Tensor  # float32 or bfloat16 [N or P, I], the left side of the product
    updates: Sequence[SparseUpdate]  # `NO_UPDATE` for an empty one
    update_of: Tensor  # int64 [N or P], index of each row's update, -1 for none


@dataclass(frozen=True)
class Product:
    """The result of a matrix product, before the epilogue."""

    values: Tensor  # [N or P, O]: float32, bfloat16, or int32 if int8 was multiplied
    factors: tuple[Int8Rows, Int8Matrix] | None = None  # of int32 values
    correction: SparseCorrection | None = None  # updates to add


@dataclass(frozen=True)
class EpilogueOutput:
    """Memory for the finished rows, in one form or both."""

    out: Tensor | None = None  # float32 or bfloat16 [N or P, O]; may be the product's values
    int8: Int8Rows | None = None


@dataclass(frozen=True)
class PerRowVector:
    """A vector for each row: row n gets table[row_of[n]]."""

    table: Tensor  # float32, one vector [O] for each task
    row_of: Tensor  # int64 [N or P]


@dataclass(frozen=True)
class LayerNormParams:
    """Scale and shift of each row's LayerNorm, and its epsilon."""

    scale: PerRowVector
    shift: PerRowVector
    eps: float


def apply_epilogue(
    product: Product,
    target: EpilogueOutput,
    *,
    bias: PerRowVector | None = None,
    residual: Tensor | None = None,
    gelu: str | None = None,
    norm: LayerNormParams | None = None,
) -> None:
    """Finish a product, in this order: correction, bias, residual, GELU, LayerNorm.

    Args:
        product: the rows to finish.
        target: memory for the finished rows.
        bias: bias of each row's task.
        residual: float32 or bfloat16 [N or P, O].
        gelu: "none" for the exact one, "tanh" for its approximation (Hendrycks and Gimpel 2016,
            arXiv:1606.08415), as in `torch.nn.functional.gelu`.
        norm: LayerNorm of each row's task.

    Raises:
        ValueError: a tensor has another shape or dtype, or is not contiguous.
    """
    shape = count, size = product.values.shape
    constants, polynomial = _constants(gelu, norm.eps if norm else 0.0)
    x, matrix = product.factors or (None, None)
    # In a variable, so that it outlives the launch.
    updates = array("q", chain(*product.correction.updates) if product.correction else ())
    int8 = target.int8
    _kernel().launch(
        count,
        size,
        size,
        constants.data_ptr(),
        *dtype_and_pointer(product.values, shape, DTYPE_CODES),
        *_int8_pointers(x, count),
        data_pointer(matrix.scales, (size,)) if matrix else 0,
        data_pointer(matrix.row_sums, (size,)) if matrix else 0,
        *_correction_pointers(product.correction, updates, count),
        *_vector_pointers(bias, shape),
        *dtype_and_pointer(residual, shape, FLOAT_CODES),
        polynomial.data_ptr() if gelu else 0,
        *_vector_pointers(norm.scale if norm else None, shape),
        *_vector_pointers(norm.shift if norm else None, shape),
        *dtype_and_pointer(target.out, shape, FLOAT_CODES),
        data_pointer(int8.values, shape, torch.int8) if int8 else 0,
        *_int8_pointers(int8, count),
    )


def _int8_pointers(rows: Int8Rows | None, count: int) -> tuple[int, int]:
    if rows is None:
        return 0, 0
    return data_pointer(rows.scales, (count,)), data_pointer(rows.offsets, (count,))


def _vector_pointers(vector: PerRowVector | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if vector is None:
        return 0, 0
    count, size = shape
    table = data_pointer(vector.table, (len(vector.table), size))
    return table, data_pointer(vector.row_of, (count,), torch.int64)


def _correction_pointers(
    correction: SparseCorrection | None, updates: array[int], count: int
) -> tuple[int, ...]:
    if correction is None:
        return 0, 0, 0, 0, 0
    x = correction.x
    update_of = data_pointer(correction.update_of, (count,), torch.int64)
    dtype_code, pointer = dtype_and_pointer(x, (count, x.shape[1]), FLOAT_CODES)
    return updates.buffer_info()[0], update_of, dtype_code, x.shape[1], pointer


_GELU_LIMIT = 5.4  # limit beyond which GELU is x or 0, within 2e-7
_GELU_DEGREE = 13
_GELUS: dict[str, Callable[[float], float]] = {
    "none": lambda x: math.erf(x / math.sqrt(2)),
    "tanh": lambda x: math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
}


@cache
def _constants(gelu: str | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return float32 (eps, GELU's limit) and the coefficients of GELU's polynomial."""

    def slope(t: float) -> float:
        """Return p in GELU = x (1/2 + x p), for x^2 scaled to t within -1..1."""
        x = _GELU_LIMIT * math.sqrt(max(t + 1, 1e-12) / 2)
        return _GELUS[gelu or "none"](x) / (2 * x)

    fitted = Chebyshev.interpolate(np.vectorize(slope), _GELU_DEGREE).convert(kind=Polynomial)
    coefficients = np.zeros(_GELU_DEGREE + 1, np.float32)
    coefficients[: len(fitted.coef)] = fitted.coef
    return torch.tensor([eps, _GELU_LIMIT]), torch.from_numpy(coefficients)


@cache
def _kernel() -> Kernel:
    return Kernel(_epilogue_kernel)


# Positions of the kernel's arguments. An address is 0 for a step that is left out.
(
    _SIZE,
    _CONSTANTS,
    _PRODUCT_DTYPE,
    _PRODUCT,
    _ROW_SCALES,
    _ROW_OFFSETS,
    _MATRIX_SCALES,
    _MATRIX_SUMS,
    _UPDATES,
    _UPDATE_OF,
    _X_DTYPE,
    _X_SIZE,
    _X,
    _BIAS,
    _BIAS_ROW_OF,
    _RESIDUAL_DTYPE,
    _RESIDUAL,
    _POLYNOMIAL,
    _SCALE,
    _SCALE_ROW_OF,
    _SHIFT,
    _SHIFT_ROW_OF,
    _OUT_DTYPE,
    _OUT,
    _INT8,
    _INT8_SCALES,
    _INT8_OFFSETS,
    _NUM_ARGUMENTS,
) = range(3, 31)

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_TOGETHER = 4  # rows at a time, so that most rows with a sparse update have a neighbour


@compiled
def _gelu(values: Any, size: int, limit: Any, c: Any) -> None:
    """Replace x by x (1/2 + s p); s is x within +-limit, p a polynomial in 2 s^2 / limit^2 - 1."""
    c0, c1, c2, c3, c4, c5, c6 = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    c7, c8, c9, c10, c11, c12, c13 = c[7], c[8], c[9], c[10], c[11], c[12], c[13]
    double = np.float32(2) / (limit * limit)
    for o in range(size):
        x = -limit if values[o] < -limit else values[o]  # NaN stays NaN
        s = limit if x > limit else x
        t = s * s * double - _ONE
        p = c13 * t + c12
        p = p * t + c11
        p = p * t + c10
        p = p * t + c9
        p = p * t + c8
        p = p * t + c7
        p = p * t + c6
        p = p * t + c5
        p = p * t + c4
        p = p * t + c3
        p = p * t + c2
        p = p * t + c1
        p = p * t + c0
        values[o] = x * (_HALF + s * p)


@compiled
def _normalise(values: Any, size: int, eps: Any, scale: Any, shift: Any) -> None:
    total = _ZERO
    for o in range(size):
        total += values[o]
    mean = total / np.float32(size)
    squares = _ZERO
    for o in range(size):
        difference = values[o] - mean
        squares += difference * difference
    factor = _ONE / np.sqrt(squares / np.float32(size) + eps)
    for o in range(size):
        values[o] = (values[o] - mean) * factor * scale[o] + shift[o]


@compiled
def _floats(address: int, row: int, size: int) -> Any:
    return carray(as_pointer(address + 4 * row * size), size, np.float32)


@compiled
def _vector(a: Any, table: int, row: int) -> Any:
    """Return a row's vector; its table is argument `table`, its `row_of` the next argument."""
    index = carray(as_pointer(a[table + 1] + 8 * row), 1, np.int64)[0]
    return _floats(a[table], index, a[_SIZE])


@compiled
def _correct(a: Any, first: int, count: int, values: Any, x: Any) -> None:
    """Add sparse updates to `values` [count, O]; x is a buffer for two rows of x."""
    update_of = carray(as_pointer(a[_UPDATE_OF] + 8 * first), count, np.int64)
    size, i = a[_X_SIZE], 0
    while i < count:
        if update_of[i] < 0:
            i += 1
            continue
        update = carray(as_pointer(a[_UPDATES] + 32 * update_of[i]), 4, np.int64)
        # Unsigned, so that the compiler does not check for negative indices.
        rows = carray(as_pointer(update[1]), update[0], np.uint32)
        columns = carray(as_pointer(update[2]), update[0], np.uint32)
        differences = carray(as_pointer(update[3]), update[0], np.float32)
        read_row(a[_X_DTYPE], a[_X], first + i, size, x[0])
        if i + 1 < count and update_of[i + 1] == update_of[i]:
            # Two rows at once read the indices only once.
            read_row(a[_X_DTYPE], a[_X], first + i + 1, size, x[1])
            for k in range(update[0]):
                row, column, difference = rows[k], columns[k], differences[k]
                values[i, row] += x[0, column] * difference
                values[i + 1, row] += x[1, column] * difference
            i += 2
        else:
            for k in range(update[0]):
                values[i, rows[k]] += x[0, columns[k]] * differences[k]
            i += 1


@compiled
def _load(a: Any, row: int, values: Any) -> None:
    """Read a row of the product as floats; scale int32 values back."""
    size = a[_SIZE]
    read_row(a[_PRODUCT_DTYPE], a[_PRODUCT], row, size, values)
    if a[_ROW_SCALES]:
        scale = _floats(a[_ROW_SCALES], row, 1)[0]
        offset = _floats(a[_ROW_OFFSETS], row, 1)[0]
        scales, sums = _floats(a[_MATRIX_SCALES], 0, size), _floats(a[_MATRIX_SUMS], 0, size)
        for o in range(size):
            values[o] = values[o] * (scale * scales[o]) + offset * sums[o]


@compiled
def _transform(a: Any, row: int, values: Any, buffer: Any) -> None:
    """Apply bias, residual, GELU and LayerNorm to a row."""
    size = a[_SIZE]
    if a[_BIAS]:
        bias = _vector(a, _BIAS, row)
        for o in range(size):
            values[o] += bias[o]
    if a[_RESIDUAL]:
        read_row(a[_RESIDUAL_DTYPE], a[_RESIDUAL], row, size, buffer)
        for o in range(size):
            values[o] += buffer[o]
    constants = _floats(a[_CONSTANTS], 0, 2)
    if a[_POLYNOMIAL]:
        _gelu(values, size, constants[1], _floats(a[_POLYNOMIAL], 0, _GELU_DEGREE + 1))
    if a[_SCALE]:
        _normalise(values, size, constants[0], _vector(a, _SCALE, row), _vector(a, _SHIFT, row))


@compiled
def _store(a: Any, row: int, values: Any) -> None:
    """Write a finished row; int8 comes last, since it overwrites the values."""
    size = a[_SIZE]
    if a[_OUT]:
        write_row(a[_OUT_DTYPE], a[_OUT], row, size, values)
    if a[_INT8]:
        into = carray(as_pointer(a[_INT8] + row * size), size, np.int8)
        scale, offset = quantise_row(values, size, into)
        _floats(a[_INT8_SCALES], row, 1)[0] = scale
        _floats(a[_INT8_OFFSETS], row, 1)[0] = offset


def _epilogue_kernel(arguments: Any) -> None:
    """Finish rows; a work item is one row of the product."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    num_rows, at_a_time, size = a[1], a[2], a[_SIZE]
    values, buffer = np.empty((_TOGETHER, size), np.float32), np.empty(size, np.float32)
    x = np.empty((2, a[_X_SIZE]), np.float32)
    while True:
        start = fetch_add(arguments, at_a_time)
        if start >= num_rows:
            break
        stop = min(start + at_a_time, num_rows)
        for first in range(start, stop, _TOGETHER):
            count = min(_TOGETHER, stop - first)
            for i in range(count):
                _load(a, first + i, values[i])
            if a[_UPDATES]:
                _correct(a, first, count, values, x)
            for i in range(count):
                _transform(a, first + i, values[i], buffer)
                _store(a, first + i, values[i])
