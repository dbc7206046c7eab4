"""What comes after a matrix product, in one pass over its results, on CPUs.

A line of a product gets what its own task's matrix adds to the frozen one, and its own task's bias;
then, as asked for, a residual is added, GELU or a LayerNorm with its own task's scale and shift
applied; it is written as numbers of the encoder's dtype, as 8-bit integers for the next product, or
as both. PyTorch's operations read and write all of a batch for each of these steps, which takes as
long as the products where those are fast.

Legend: T lines, O values of a line, S slots.

The loop behind `deltas.kernels.epilogue`: a few lines at a time are read, finished and written.

Floats of a line stay in the innermost cache until they are written. Loops over a line
are plain, so that the compiler makes vector instructions of them.

Legend: O values of a line.
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

from deltas.kernels.int8 import Int8Matrix, Int8Rows
from deltas.kernels.runtime import (
    FLOATS,
    KINDS,
    Kernel,
    address,
    compiled,
    data_pointer,
    dtype_and_pointer,
    fetch_add,
    float_of_bits,
    read_line,
    sortable_bits,
    write_line,
)
from deltas.kernels.simd import MIXED, mix_floats

GELU_LIMIT = 5.4  # GELU is x or 0 beyond, within 2e-7
GELU_DEGREE = 13

_ZERO, _HALF, _ONE, _TINY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-30)
_MOST = np.float32(127)
_MAGNITUDE = np.int32(0x7FFFFFFF)  # a float's bits without its sign
_MIXED_SIZE = np.float32(1 / math.sqrt(MIXED))  # makes H orthogonal

_TOGETHER = 4  # lines, so that most of those that are corrected have a neighbour


@compiled
def _gelu(values: Any, size: int, limit: Any, c: Any) -> None:
    """Make each x an x (1/2 + s p); s: x within +-limit, p: polynomial in 2 s^2 / limit^2 - 1."""
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
        away = values[o] - mean
        squares += away * away
    steepness = _ONE / np.sqrt(squares / np.float32(size) + eps)
    for o in range(size):
        values[o] = (values[o] - mean) * steepness * scale[o] + shift[o]


@compiled
def _mean(values: Any, size: int) -> Any:
    total = _ZERO
    for o in range(size):
        total += values[o]
    return total / np.float32(size)


@compiled
def _middle(values: Any, size: int) -> Any:
    """Halfway between a line's extremes."""
    bits = values.view(np.int32)
    low = high = sortable_bits(bits[0])
    for o in range(size):  # of whole numbers, since extremes of floats are not vectorised
        key = sortable_bits(bits[o])
        low, high = min(low, key), max(high, key)
    return _HALF * (float_of_bits(sortable_bits(low)) + float_of_bits(sortable_bits(high)))


@compiled
def _quantise(values: Any, size: int, into: Any) -> Any:
    """Write a line as int8; returns its step and its offset. `values` are used up."""
    is_mixed = size % MIXED == 0
    offset = _mean(values, size) if is_mixed else _middle(values, size)
    for o in range(size):
        values[o] -= offset
    if is_mixed:
        place = np.int64(values.ctypes.data)
        for start in range(0, size, MIXED):
            mix_floats(place + 4 * start)
    bits = values.view(np.int32)
    most = np.int32(0)
    for o in range(size):
        most = max(most, bits[o] & _MAGNITUDE)
    step = float_of_bits(most) / _MOST + _TINY
    per_step = _ONE / step
    for o in range(size):
        scaled = values[o] * per_step
        into[o] = np.int8(np.int32(scaled + (_HALF if scaled > _ZERO else -_HALF)))
    return (_MIXED_SIZE * step if is_mixed else step), offset


# Where the kernel's arguments lie; a place in memory is 0 where there is nothing.
(
    _SIZE,
    _NUMBERS,
    _PRODUCT_KIND,
    _PRODUCT,
    _LINE_STEPS,
    _LINE_OFFSETS,
    _MATRIX_STEPS,
    _MATRIX_SUMS,
    _OWN,
    _OWN_LINES,
    _X_KIND,
    _X_SIZE,
    _X,
    _BIAS,
    _BIAS_LINES,
    _RESIDUAL_KIND,
    _RESIDUAL,
    _POLYNOMIAL,
    _SCALE,
    _SCALE_LINES,
    _SHIFT,
    _SHIFT_LINES,
    _OUT_KIND,
    _OUT,
    _WHOLE,
    _WHOLE_STEPS,
    _WHOLE_OFFSETS,
    _NUM_ARGUMENTS,
) = range(3, 31)


@compiled
def _floats(place: int, line: int, size: int) -> Any:
    return carray(address(place + 4 * line * size), size, np.float32)


@compiled
def _own(a: Any, table: int, line: int) -> Any:
    """A line's own vector; where its table lies is argument `table`, its lines' the next one."""
    number = carray(address(a[table + 1] + 8 * line), 1, np.int64)[0]
    return _floats(a[table], number, a[_SIZE])


@compiled
def _correct(a: Any, first: int, count: int, values: Any, x: Any) -> None:
    """Add what some lines lack to `values` [count, O]; x is room for two lines of x."""
    of_line = carray(address(a[_OWN_LINES] + 8 * first), count, np.int64)
    size, i = a[_X_SIZE], 0
    while i < count:
        if of_line[i] < 0:
            i += 1
            continue
        table = carray(address(a[_OWN] + 32 * of_line[i]), 4, np.int64)
        # Unsigned, so that none is asked whether it counts from the end.
        rows = carray(address(table[1]), table[0], np.uint32)
        columns = carray(address(table[2]), table[0], np.uint32)
        differences = carray(address(table[3]), table[0], np.float32)
        read_line(a[_X_KIND], a[_X], first + i, size, x[0])
        if i + 1 < count and of_line[i + 1] == of_line[i]:
            # Two at once share the reading of where the values lie.
            read_line(a[_X_KIND], a[_X], first + i + 1, size, x[1])
            for k in range(table[0]):
                row, column, difference = rows[k], columns[k], differences[k]
                values[i, row] += x[0, column] * difference
                values[i + 1, row] += x[1, column] * difference
            i += 2
        else:
            for k in range(table[0]):
                values[i, rows[k]] += x[0, columns[k]] * differences[k]
            i += 1


@compiled
def _gather(a: Any, line: int, values: Any) -> None:
    """Read a line of the product; make it floats."""
    size = a[_SIZE]
    read_line(a[_PRODUCT_KIND], a[_PRODUCT], line, size, values)
    if a[_LINE_STEPS]:
        step = _floats(a[_LINE_STEPS], line, 1)[0]
        offset = _floats(a[_LINE_OFFSETS], line, 1)[0]
        steps, sums = _floats(a[_MATRIX_STEPS], 0, size), _floats(a[_MATRIX_SUMS], 0, size)
        for o in range(size):
            values[o] = values[o] * (step * steps[o]) + offset * sums[o]


@compiled
def _add(a: Any, line: int, values: Any, other: Any) -> None:
    """Bias, residual."""
    size = a[_SIZE]
    if a[_BIAS]:
        bias = _own(a, _BIAS, line)
        for o in range(size):
            values[o] += bias[o]
    if a[_RESIDUAL]:
        read_line(a[_RESIDUAL_KIND], a[_RESIDUAL], line, size, other)
        for o in range(size):
            values[o] += other[o]


@compiled
def _transform(a: Any, line: int, values: Any) -> None:
    """GELU, LayerNorm."""
    size = a[_SIZE]
    numbers = _floats(a[_NUMBERS], 0, 2)
    if a[_POLYNOMIAL]:
        _gelu(values, size, numbers[1], _floats(a[_POLYNOMIAL], 0, GELU_DEGREE + 1))
    if a[_SCALE]:
        _normalise(values, size, numbers[0], _own(a, _SCALE, line), _own(a, _SHIFT, line))


@compiled
def _store(a: Any, line: int, values: Any) -> None:
    """Write a finished line in each form that is asked for; whole numbers come last."""
    size = a[_SIZE]
    if a[_OUT]:
        write_line(a[_OUT_KIND], a[_OUT], line, size, values)
    if a[_WHOLE]:
        into = carray(address(a[_WHOLE] + line * size), size, np.int8)
        step, offset = _quantise(values, size, into)
        _floats(a[_WHOLE_STEPS], line, 1)[0] = step
        _floats(a[_WHOLE_OFFSETS], line, 1)[0] = offset


def epilogue(arguments: Any) -> None:
    """The kernel."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    lines, at_a_time, size = a[1], a[2], a[_SIZE]
    values, other = np.empty((_TOGETHER, size), np.float32), np.empty(size, np.float32)
    x = np.empty((2, a[_X_SIZE]), np.float32)
    while True:
        start = fetch_add(arguments, at_a_time)
        if start >= lines:
            break
        stop = min(start + at_a_time, lines)
        for first in range(start, stop, _TOGETHER):
            count = min(_TOGETHER, stop - first)
            for i in range(count):
                _gather(a, first + i, values[i])
            if a[_OWN]:
                _correct(a, first, count, values, x)
            for i in range(count):
                _add(a, first + i, values[i], other)
                _transform(a, first + i, values[i])
                _store(a, first + i, values[i])


# K, and the addresses of a sparse update's rows, columns and values; see `sparse_update`.
SparseUpdate = tuple[int, int, int, int]
NO_UPDATE: SparseUpdate = 0, 0, 0, 0


def sparse_update(rows: Tensor, columns: Tensor, values: Tensor) -> SparseUpdate:
    """Return the pointers to a sparse update of a shared matrix, which the kernel reads.

    The tensors must stay alive for as long as the pointers are in use.

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
    """Sparse updates of the shared matrix that a product with it does not contain yet.

    Attributes:
        x: float32 or bfloat16 [N or P, I], the left side of the product.
        updates: pointers to each update, `NO_UPDATE` for an empty one.
        update_of: int64 [N or P], index of each row's update, -1 for none.
    """

    x: Tensor
    updates: Sequence[SparseUpdate]
    update_of: Tensor


_GELUS: dict[str, Callable[[float], float]] = {
    "none": lambda x: math.erf(x / math.sqrt(2)),
    "tanh": lambda x: math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
}


@dataclass(frozen=True)
class Product:
    """What a matrix product gave.

    Attributes:
        values: float32, bfloat16 or, of whole numbers, int32 [T, O].
        factors: what was multiplied, for whole numbers.
        correction: what the product lacks.
    """

    values: Tensor
    factors: tuple[Int8Rows, Int8Matrix] | None = None
    correction: SparseCorrection | None = None


@dataclass(frozen=True)
class EpilogueOutput:
    """Where finished lines go; one or both.

    Attributes:
        out: float32 or bfloat16 [T, O]; may be the product's values.
        int8: the same as whole numbers.
    """

    out: Tensor | None = None
    int8: Int8Rows | None = None


@dataclass(frozen=True)
class PerRowVector:
    """A vector for each line: row t gets table[row_of[t]].

    Attributes:
        table: float32 [S, O].
        row_of: int64 [T].
    """

    table: Tensor
    row_of: Tensor


@dataclass(frozen=True)
class LayerNormParams:
    """A LayerNorm's scale and shift, for each line, and its epsilon."""

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
    """Finish a product, in this order: corrections, bias, residual, GELU, LayerNorm.

    Args:
        product: the lines.
        target: where to write.
        bias: added first.
        residual: float32 or bfloat16 [T, O].
        gelu: "none" for the exact one, "tanh" for its approximation (Hendrycks and Gimpel 2016,
            arXiv:1606.08415), as `torch.nn.functional.gelu` calls them.
        norm: comes last.

    Raises:
        ValueError: a tensor has another shape or dtype, or its values don't lie one after the
            other.
    """
    shape = lines, size = product.values.shape
    numbers, polynomial = _constants(gelu, norm.eps if norm else 0.0)
    x, matrix = product.factors or (None, None)
    own = _table_of(product.correction)  # in a variable, so that it outlives the kernel's run
    whole = target.int8
    _kernel().launch(
        lines,
        size,
        size,
        numbers.data_ptr(),
        *dtype_and_pointer(product.values, shape, KINDS),
        *_places_of_lines(x, lines),
        *(
            (data_pointer(matrix.scales, (size,)), data_pointer(matrix.row_sums, (size,)))
            if matrix
            else (0, 0)
        ),
        *_places_of_own(product.correction, own, lines),
        *_places_of(bias, shape),
        *dtype_and_pointer(residual, shape, FLOATS),
        polynomial.data_ptr() if gelu else 0,
        *_places_of(norm.scale if norm else None, shape),
        *_places_of(norm.shift if norm else None, shape),
        *dtype_and_pointer(target.out, shape, FLOATS),
        data_pointer(whole.values, shape, torch.int8) if whole else 0,
        *_places_of_lines(whole, lines),
    )


def _places_of_lines(quantised: Int8Rows | None, lines: int) -> tuple[int, int]:
    """Of their steps and offsets."""
    if quantised is None:
        return 0, 0
    return data_pointer(quantised.scales, (lines,)), data_pointer(quantised.offsets, (lines,))


def _places_of(vectors: PerRowVector | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if vectors is None:
        return 0, 0
    lines, size = shape
    table = data_pointer(vectors.table, (len(vectors.table), size))
    return table, data_pointer(vectors.row_of, (lines,), torch.int64)


def _table_of(corrections: SparseCorrection | None) -> array[int]:
    """Int64 [slots x 4], for each: K, and where rows, columns and differences lie."""
    return array("q", chain.from_iterable(corrections.updates if corrections else ()))


def _places_of_own(
    corrections: SparseCorrection | None, table: array[int], lines: int
) -> tuple[int, ...]:
    if corrections is None:
        return 0, 0, 0, 0, 0
    x = corrections.x
    of_line = data_pointer(corrections.update_of, (lines,), torch.int64)
    kind, place = dtype_and_pointer(x, (lines, x.shape[1]), FLOATS)
    return table.buffer_info()[0], of_line, kind, x.shape[1], place


@cache
def _kernel() -> Kernel:
    return Kernel(epilogue)


@cache
def _constants(gelu: str | None, eps: float) -> tuple[Tensor, Tensor]:
    """What the kernel reads besides tensors: float32 (eps, limit) and the polynomial."""

    def slope(place: float) -> float:
        """What x is multiplied with in GELU = x (1/2 + x slope); `place` is x^2 within -1..1."""
        x = GELU_LIMIT * math.sqrt(max(place + 1, 1e-12) / 2)
        return _GELUS[gelu or "none"](x) / (2 * x)

    fitted = Chebyshev.interpolate(np.vectorize(slope), GELU_DEGREE).convert(kind=Polynomial)
    coefficients = np.zeros(GELU_DEGREE + 1, np.float32)
    coefficients[: len(fitted.coef)] = fitted.coef
    return torch.tensor([eps, GELU_LIMIT]), torch.from_numpy(coefficients)
