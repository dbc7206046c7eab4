"""What comes after a matrix product, in one pass over its results, on CPUs.

A line of a product gets its own task's bias; then, as asked for, a residual is added, GELU or a
LayerNorm with its own task's scale and shift applied; it is written as numbers of the encoder's
dtype, as 8-bit integers for the next product, or as both. PyTorch's operations read and write all
of a batch for each of these steps, which takes as long as the products where those are fast.

Legend: T lines, O values of a line, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import carray
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from app.quantised import Quantised, QuantisedMatrix
from deltas.native import (
    F32,
    KINDS,
    Kernel,
    address,
    claim,
    compiled,
    float_of_bits,
    place_of,
    read_line,
)

_ZERO, _HALF, _ONE, _TINY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-30)
_MOST = np.float32(127)
_UPPER = np.int32(16)  # bits of a bfloat16 are the upper ones of a float32
_ALMOST_HALF, _MAGNITUDE, _SIGN = np.int32(0x7FFF), np.int32(0x7FFFFFFF), np.int32(31)

_GELU_LIMIT = 5.4  # GELU is x or 0 beyond, within 2e-7
_GELU_DEGREE = 13
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
    """

    values: Tensor
    factors: tuple[Quantised, QuantisedMatrix] | None = None


@dataclass(frozen=True)
class Target:
    """Where finished lines go; one or both.

    Attributes:
        out: float32 or bfloat16 [T, O]; may be the product's values.
        quantised: the same as whole numbers.
    """

    out: Tensor | None = None
    quantised: Quantised | None = None


@dataclass(frozen=True)
class PerLine:
    """A vector for each line: line t gets table[lines[t]].

    Attributes:
        table: float32 [S, O].
        lines: int64 [T].
    """

    table: Tensor
    lines: Tensor


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's scale and shift, for each line, and its epsilon."""

    scale: PerLine
    shift: PerLine
    eps: float


def finish(
    product: Product,
    target: Target,
    *,
    bias: PerLine | None = None,
    residual: Tensor | None = None,
    gelu: str | None = None,
    norm: Norm | None = None,
) -> None:
    """Finish a product, in this order: bias, residual, GELU, LayerNorm.

    Args:
        product: the lines.
        target: where to write.
        bias: added first.
        residual: float32 or bfloat16 [T, O].
        gelu: "none" for the exact one, "tanh" for its approximation (Hendrycks and Gimpel 2016,
            arXiv:1606.08415), as `torch.nn.functional.gelu` calls them.
        norm: comes last.

    Raises:
        ValueError: a tensor's values don't lie one after the other.
    """
    lines, size = product.values.shape
    numbers, polynomial = _constants(gelu, norm.eps if norm else 0.0)
    x, matrix = product.factors or (None, None)
    out, quantised = target.out, target.quantised
    _kernel().run(
        lines,
        size,
        size,
        numbers.ctypes.data,
        KINDS[product.values.dtype],
        place_of(product.values),
        *((place_of(x.steps), place_of(x.middles)) if x else (0, 0)),
        *((place_of(matrix.steps), place_of(matrix.sums)) if matrix else (0, 0)),
        *_places_of(bias),
        KINDS[residual.dtype] if residual is not None else 0,
        place_of(residual),
        polynomial.ctypes.data if gelu else 0,
        *_places_of(norm.scale if norm else None),
        *_places_of(norm.shift if norm else None),
        KINDS[out.dtype] if out is not None else 0,
        place_of(out),
        place_of(quantised.values) if quantised else 0,
        *((place_of(quantised.steps), place_of(quantised.middles)) if quantised else (0, 0)),
    )


def _places_of(vectors: PerLine | None) -> tuple[int, int]:
    return (place_of(vectors.table), place_of(vectors.lines)) if vectors else (0, 0)


@cache
def _kernel() -> Kernel:
    return Kernel(_epilogue)


@cache
def _constants(gelu: str | None, eps: float) -> tuple[Any, Any]:
    """What the kernel reads besides tensors: float32 (eps, limit) and the polynomial."""

    def slope(place: float) -> float:
        """What x is multiplied with in GELU = x (1/2 + x slope); `place` is x^2 within -1..1."""
        x = _GELU_LIMIT * math.sqrt(max(place + 1, 1e-12) / 2)
        return _GELUS[gelu or "none"](x) / (2 * x)

    fitted = Chebyshev.interpolate(np.vectorize(slope), _GELU_DEGREE).convert(kind=Polynomial)
    coefficients = np.zeros(_GELU_DEGREE + 1, np.float32)
    coefficients[: len(fitted.coef)] = fitted.coef
    return np.array([eps, _GELU_LIMIT], np.float32), coefficients


@compiled
def _write(kind: int, place: int, line: int, size: int, values: Any) -> None:
    """Copy float32 values into a line of float32 or bfloat16 (to nearest, ties to even)."""
    if kind == F32:
        floats = carray(address(place + 4 * line * size), size, np.float32)
        for o in range(size):
            floats[o] = values[o]
    else:
        halves = carray(address(place + 2 * line * size), size, np.uint16)
        bits = values.view(np.int32)
        for o in range(size):
            odd = (bits[o] >> _UPPER) & np.int32(1)
            halves[o] = np.uint16((bits[o] + _ALMOST_HALF + odd) >> _UPPER)


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
def _ordered(bits: Any) -> Any:
    """A float32's bits as an int32 that is ordered as the floats are; its own inverse."""
    return np.int32(bits ^ ((bits >> _SIGN) & _MAGNITUDE))


@compiled
def _quantise(values: Any, size: int, into: Any) -> Any:
    """Write a line as int8; returns its step and its middle."""
    bits = values.view(np.int32)
    low = high = _ordered(bits[0])
    for o in range(size):  # of whole numbers, since extremes of floats are not vectorised
        key = _ordered(bits[o])
        low, high = min(low, key), max(high, key)
    least, most = float_of_bits(_ordered(low)), float_of_bits(_ordered(high))
    middle = _HALF * (least + most)
    step = (most - middle) / _MOST + _TINY
    per_step = _ONE / step
    for o in range(size):
        scaled = (values[o] - middle) * per_step
        into[o] = np.int8(np.int32(scaled + (_HALF if scaled > _ZERO else -_HALF)))
    return step, middle


# Where the kernel's arguments lie; a place in memory is 0 where there is nothing.
(
    _SIZE,
    _NUMBERS,
    _PRODUCT_KIND,
    _PRODUCT,
    _LINE_STEPS,
    _LINE_MIDDLES,
    _MATRIX_STEPS,
    _MATRIX_SUMS,
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
    _WHOLE_MIDDLES,
    _NUM_ARGUMENTS,
) = range(3, 26)


@compiled
def _floats(place: int, line: int, size: int) -> Any:
    return carray(address(place + 4 * line * size), size, np.float32)


@compiled
def _own(a: Any, table: int, line: int) -> Any:
    """A line's own vector; where its table lies is argument `table`, its lines' the next one."""
    number = carray(address(a[table + 1] + 8 * line), 1, np.int64)[0]
    return _floats(a[table], number, a[_SIZE])


@compiled
def _gather(a: Any, line: int, values: Any, other: Any) -> None:
    """Read a line of the product; make it floats, add bias and residual."""
    size = a[_SIZE]
    read_line(a[_PRODUCT_KIND], a[_PRODUCT], line, size, values)
    if a[_LINE_STEPS]:
        step = _floats(a[_LINE_STEPS], line, 1)[0]
        middle = _floats(a[_LINE_MIDDLES], line, 1)[0]
        steps, sums = _floats(a[_MATRIX_STEPS], 0, size), _floats(a[_MATRIX_SUMS], 0, size)
        for o in range(size):
            values[o] = values[o] * (step * steps[o]) + middle * sums[o]
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
        _gelu(values, size, numbers[1], _floats(a[_POLYNOMIAL], 0, _GELU_DEGREE + 1))
    if a[_SCALE]:
        _normalise(values, size, numbers[0], _own(a, _SCALE, line), _own(a, _SHIFT, line))


@compiled
def _store(a: Any, line: int, values: Any) -> None:
    """Write a finished line in each form that is asked for."""
    size = a[_SIZE]
    if a[_OUT]:
        _write(a[_OUT_KIND], a[_OUT], line, size, values)
    if a[_WHOLE]:
        into = carray(address(a[_WHOLE] + line * size), size, np.int8)
        step, middle = _quantise(values, size, into)
        _floats(a[_WHOLE_STEPS], line, 1)[0] = step
        _floats(a[_WHOLE_MIDDLES], line, 1)[0] = middle


def _epilogue(arguments: Any) -> None:
    """The kernel."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    lines, at_a_time, size = a[1], a[2], a[_SIZE]
    values, other = np.empty(size, np.float32), np.empty(size, np.float32)
    while True:
        start = claim(arguments, at_a_time)
        if start >= lines:
            break
        for line in range(start, min(start + at_a_time, lines)):
            _gather(a, line, values, other)
            _transform(a, line, values)
            _store(a, line, values)
