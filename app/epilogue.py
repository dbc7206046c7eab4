"""What comes after a matrix product, in one pass over its results, on CPUs.

A line of a product gets what its own task's matrix adds to the frozen one, and its own task's bias;
then, as asked for, a residual is added, GELU or a LayerNorm with its own task's scale and shift
applied; it is written as numbers of the encoder's dtype, as 8-bit integers for the next product, or
as both. PyTorch's operations read and write all of a batch for each of these steps, which takes as
long as the products where those are fast.

Legend: T lines, O values of a line, S slots.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from app.epilogue_kernel import GELU_DEGREE, GELU_LIMIT, epilogue
from app.quantised import Quantised, QuantisedMatrix
from app.sparse import Corrections
from deltas.native import FLOATS, KINDS, Kernel, kind_and_place, place_of

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
        corrections: what the product lacks.
    """

    values: Tensor
    factors: tuple[Quantised, QuantisedMatrix] | None = None
    corrections: Corrections | None = None


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
    own = _table_of(product.corrections)  # in a variable, so that it outlives the kernel's run
    whole = target.quantised
    _kernel().run(
        lines,
        size,
        size,
        numbers.data_ptr(),
        *kind_and_place(product.values, shape, KINDS),
        *_places_of_lines(x, lines),
        *((place_of(matrix.steps, (size,)), place_of(matrix.sums, (size,))) if matrix else (0, 0)),
        *_places_of_own(product.corrections, own, lines),
        *_places_of(bias, shape),
        *kind_and_place(residual, shape, FLOATS),
        polynomial.data_ptr() if gelu else 0,
        *_places_of(norm.scale if norm else None, shape),
        *_places_of(norm.shift if norm else None, shape),
        *kind_and_place(target.out, shape, FLOATS),
        place_of(whole.values, shape, torch.int8) if whole else 0,
        *_places_of_lines(whole, lines),
    )


def _places_of_lines(quantised: Quantised | None, lines: int) -> tuple[int, int]:
    """Of their steps and offsets."""
    if quantised is None:
        return 0, 0
    return place_of(quantised.steps, (lines,)), place_of(quantised.offsets, (lines,))


def _places_of(vectors: PerLine | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if vectors is None:
        return 0, 0
    lines, size = shape
    table = place_of(vectors.table, (len(vectors.table), size))
    return table, place_of(vectors.lines, (lines,), torch.int64)


def _table_of(corrections: Corrections | None) -> array[int]:
    """Int64 [slots x 4], for each: K, and where rows, columns and differences lie."""
    slots = corrections.own if corrections else ()
    return array("q", chain.from_iterable(own.places if own else (0, 0, 0, 0) for own in slots))


def _places_of_own(
    corrections: Corrections | None, table: array[int], lines: int
) -> tuple[int, ...]:
    if corrections is None:
        return 0, 0, 0, 0, 0
    x = corrections.x
    of_line = place_of(corrections.of_line, (lines,), torch.int64)
    kind, place = kind_and_place(x, (lines, x.shape[1]), FLOATS)
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
