"""The kernel behind `deltas.kernels.epilogue`, which states what it computes.

Loops over a row are plain, so that the compiler vectorises them. A row is quantised as
`deltas.kernels.int8` defines. Tested by tests/unit/deltas/kernels/test_epilogue.py and
tests/unit/deltas/kernels/test_int8.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from deltas.kernels.compiled import GELU_DEGREE, HADAMARD_SIZE, HEAD, ROWS_TOGETHER
from deltas.kernels.compiled.language import (
    as_pointer,
    compiled,
    fetch_add,
    float_of_bits,
    own_scratch,
    read_row,
    sortable_bits,
    write_row,
)
from deltas.kernels.compiled.simd import hadamard_floats

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
) = range(HEAD, HEAD + 28)

_ZERO, _HALF, _ONE, _TINY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-30)
_MAX_INT8 = np.float32(127)
_MAGNITUDE = np.int32(0x7FFFFFFF)  # mask of a float's bits without the sign
_HADAMARD_NORM = np.float32(1 / math.sqrt(HADAMARD_SIZE))  # makes the transform orthogonal


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
        _gelu(values, size, constants[1], _floats(a[_POLYNOMIAL], 0, GELU_DEGREE + 1))
    if a[_SCALE]:
        _normalise(values, size, constants[0], _vector(a, _SCALE, row), _vector(a, _SHIFT, row))


@compiled
def quantise_row(values: Any, size: int, into: Any) -> Any:
    """Write a row of float32 values, which are overwritten, as int8; return scale and offset."""
    transforms = size % HADAMARD_SIZE == 0
    offset = _mean(values, size) if transforms else _middle(values, size)
    for o in range(size):
        values[o] -= offset
    if transforms:
        address = np.int64(values.ctypes.data)
        for start in range(0, size, HADAMARD_SIZE):
            hadamard_floats(address + 4 * start)
    bits = values.view(np.int32)
    most = np.int32(0)
    for o in range(size):
        most = max(most, bits[o] & _MAGNITUDE)
    scale = float_of_bits(most) / _MAX_INT8 + _TINY
    per_step = _ONE / scale
    for o in range(size):
        scaled = values[o] * per_step
        into[o] = np.int8(np.int32(scaled + (_HALF if scaled > _ZERO else -_HALF)))
    return (_HADAMARD_NORM * scale if transforms else scale), offset


@compiled
def _mean(values: Any, size: int) -> Any:
    total = _ZERO
    for o in range(size):
        total += values[o]
    return total / np.float32(size)


@compiled
def _middle(values: Any, size: int) -> Any:
    """Return the middle between a row's extremes."""
    bits = values.view(np.int32)
    low = high = sortable_bits(bits[0])
    for o in range(size):  # over integers, since extremes of floats are not vectorised
        key = sortable_bits(bits[o])
        low, high = min(low, key), max(high, key)
    return _HALF * (float_of_bits(sortable_bits(low)) + float_of_bits(sortable_bits(high)))


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


def kernel(arguments: Any) -> None:
    """Finish rows; a work item is one row of the product."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    num_rows, at_a_time, size = a[1], a[2], a[_SIZE]
    scratch = own_scratch(a)
    values = carray(as_pointer(scratch), (ROWS_TOGETHER, size), np.float32)
    buffer = _floats(scratch, ROWS_TOGETHER, size)
    x = carray(as_pointer(scratch + 4 * (ROWS_TOGETHER + 1) * size), (2, a[_X_SIZE]), np.float32)
    while True:
        start = fetch_add(arguments, at_a_time)
        if start >= num_rows:
            break
        stop = min(start + at_a_time, num_rows)
        for first in range(start, stop, ROWS_TOGETHER):
            count = min(ROWS_TOGETHER, stop - first)
            for i in range(count):
                _load(a, first + i, values[i])
            if a[_UPDATES]:
                _correct(a, first, count, values, x)
            for i in range(count):
                _transform(a, first + i, values[i], buffer)
                _store(a, first + i, values[i])
