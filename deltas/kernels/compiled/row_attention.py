"""The kernel behind `deltas.kernels.row_attention`, which states what it computes.

Tested by tests/unit/deltas/kernels/test_row_attention.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.polynomial import Chebyshev, Polynomial

from deltas.kernels.compiled import BF16, HEAD, WIDTH
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
from deltas.kernels.compiled.simd import TILE_ROWS, multiply_tile, read_floats, write_floats

# Positions of the kernel's arguments.
(
    _HEADS,
    _DEPTH,
    _MAX_LENGTH,
    _STARTS,
    _LENGTHS,
    _QUERY_STARTS,
    _QUERY_COUNTS,
    _DTYPE_CODE,
    _QUERY,
    _QUERY_STRIDE,
    _KEY,
    _VALUE,
    _KEY_STRIDE,
    _OUT,
    _NUM_ARGUMENTS,
) = range(HEAD, HEAD + 15)

_LOG2_E = 1.4426950408889634  # factor of the scores, so that 2^x serves for e^x
_MIN_EXPONENT = np.float32(-120)  # exponent below which 2^x is as good as 0
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_EXPONENT_SHIFT = np.int32(23)
# Polynomial of 2^x for x within +-1/2, with a relative error of 2e-8.
_POWER = Chebyshev.interpolate(lambda x: 2 ** (x / 2), 6).convert(kind=Polynomial).coef
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = (np.float32(c * 2**n) for n, c in enumerate(_POWER))


@compiled
def _integer(table: int, index: int) -> Any:
    return carray(as_pointer(table + 8 * index), 1, np.int64)[0]


@compiled
def _round_up(count: int) -> int:
    return (count + WIDTH - 1) // WIDTH * WIDTH


@compiled
def _zeros(address: int, rows: int, columns: int) -> Any:
    """Return zeros [rows, columns] at an address, and the address behind them."""
    flat = carray(as_pointer(address), rows * columns, np.float32)
    for i in range(rows * columns):
        flat[i] = _ZERO
    matrix = carray(as_pointer(address), (rows, columns), np.float32)
    return matrix, address + 4 * rows * columns


@compiled
def _address(values: Any) -> Any:
    return np.int64(values.ctypes.data)


@compiled
def _read(dtype_code: int, source: int, depth: int, into: Any, factor: Any) -> None:
    """Copy D values at an address, times a factor, to floats."""
    if depth % WIDTH:
        read_row(dtype_code, source, 0, depth, into)
        for d in range(depth):
            into[d] *= factor
    else:
        bytes_each = 2 if dtype_code == BF16 else 4
        for d in range(0, depth, WIDTH):
            read_floats(dtype_code, source + bytes_each * d, _address(into) + 4 * d, factor)


@compiled
def _write(dtype_code: int, values: Any, depth: int, target: int, factor: Any) -> None:
    """Write D floats, times a factor, to an address."""
    if depth % WIDTH:
        for d in range(depth):
            values[d] *= factor
        write_row(dtype_code, target, 0, depth, values)
    else:
        bytes_each = 2 if dtype_code == BF16 else 4
        for d in range(0, depth, WIDTH):
            write_floats(dtype_code, _address(values) + 4 * d, target + bytes_each * d, factor)


@compiled
def _powers(scores: Any, count: int) -> Any:
    """Replace scores by 2^(score - largest); return 1 over their sum."""
    bits = scores.view(np.int32)
    most = sortable_bits(bits[0])
    for j in range(count):  # over integers, since a maximum of floats is not vectorised
        most = max(most, sortable_bits(bits[j]))
    largest = float_of_bits(sortable_bits(most))
    for j in range(count):
        x = scores[j] - largest
        x = _MIN_EXPONENT if x < _MIN_EXPONENT else x  # NaN stays NaN
        whole = np.int32(x - _HALF)  # rounds to nearest, since x is not positive
        x -= np.float32(whole)
        p = _P6 * x + _P5
        p = p * x + _P4
        p = p * x + _P3
        p = p * x + _P2
        p = p * x + _P1
        scores[j] = p * x + _P0
        bits[j] += whole << _EXPONENT_SHIFT
    total = _ZERO
    for j in range(count):
        total += scores[j]
    return _ONE / total


@compiled
def _load(a: Any, segment: int, head: int, keys: Any, values: Any, buffer: Any) -> Any:
    """Fill keys [D, L], transposed, and values [L, D] of a segment's L tokens; return L."""
    dtype_code, depth = a[_DTYPE_CODE], a[_DEPTH]
    bytes_each = 2 if dtype_code == BF16 else 4
    start, length = _integer(a[_STARTS], segment), _integer(a[_LENGTHS], segment)
    for j in range(length):
        offset = bytes_each * (head * depth + (start + j) * a[_KEY_STRIDE])
        _read(dtype_code, a[_KEY] + offset, depth, buffer, _ONE)
        for d in range(depth):
            keys[d, j] = buffer[d]
        _read(dtype_code, a[_VALUE] + offset, depth, values[j], _ONE)
    return length


@compiled
def _multiply(out: Any, rows: Any, matrix: Any, size: int, depth: int) -> None:
    """Write rows [TILE_ROWS, depth] times matrix [depth, size] to out [TILE_ROWS, size]."""
    strides = out.shape[1], rows.shape[1], matrix.shape[1]
    for o in range(0, size, WIDTH):
        into, columns = _address(out) + 4 * o, _address(matrix) + 4 * o
        multiply_tile(into, strides[0], _address(rows), strides[1], columns, strides[2], depth)


def kernel(arguments: Any) -> None:
    """Attend; a work item is one head of one segment."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    heads, depth, dtype_code = a[_HEADS], a[_DEPTH], a[_DTYPE_CODE]
    bytes_each = 2 if dtype_code == BF16 else 4
    most, padded = _round_up(a[_MAX_LENGTH]), _round_up(depth)
    # Values beyond a segment or a head are left from an earlier one, and not used.
    scratch = own_scratch(a)
    keys, scratch = _zeros(scratch, depth, most)
    values, scratch = _zeros(scratch, most, padded)
    queries, scratch = _zeros(scratch, TILE_ROWS, padded)
    out, scratch = _zeros(scratch, TILE_ROWS, padded)
    scores, scratch = _zeros(scratch, TILE_ROWS, most)
    factors = carray(as_pointer(scratch), TILE_ROWS, np.float32)
    scale = np.float32(_LOG2_E / np.sqrt(depth))
    while True:
        first = fetch_add(arguments, a[2])
        if first >= a[1]:
            break
        for item in range(first, min(first + a[2], a[1])):
            segment, head = item // heads, item % heads
            length = _load(a, segment, head, keys, values, out[0])
            start = _integer(a[_QUERY_STARTS], segment)
            stop = start + _integer(a[_QUERY_COUNTS], segment)
            for i in range(start, stop, TILE_ROWS):
                count = min(TILE_ROWS, stop - i)
                for n in range(count):
                    offset = bytes_each * (head * depth + (i + n) * a[_QUERY_STRIDE])
                    _read(dtype_code, a[_QUERY] + offset, depth, queries[n], scale)
                _multiply(scores, queries, keys, length, depth)
                for n in range(count):
                    factors[n] = _powers(scores[n], length)
                _multiply(out, scores, values, depth, length)
                for n in range(count):
                    offset = bytes_each * depth * (head + (i + n) * heads)
                    _write(dtype_code, out[n], depth, a[_OUT] + offset, factors[n])
