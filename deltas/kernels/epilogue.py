"""Finishes a matrix product in one pass over its results, on a CPU (GEMM epilogue).

Each row of the product gets, in this order and as asked for: the sparse update of its task's
matrix, its task's bias, a residual, GELU, and a LayerNorm with its task's scale and shift. It is
written as floats, as int8 for the next product, or both. PyTorch reads and writes the whole batch
for each of these steps, which takes as long as the products where those are fast.

`apply_epilogue` is the only entry; `deltas.encoder.cpu` calls it after every product. The kernel
(`deltas.kernels.compiled.epilogue`) handles a few rows at a time, so that their values stay in the
innermost cache until they are written.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from deltas.kernels.compiled import EPILOGUE, GELU_DEGREE, ROWS_TOGETHER
from deltas.kernels.int8 import Int8Matrix, Int8Rows
from deltas.kernels.runtime import (
    DTYPE_CODES,
    FLOAT_CODES,
    data_pointer,
    dtype_and_pointer,
    kernel,
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
    x_size = product.correction.x.shape[1] if product.correction else 0
    kernel(EPILOGUE).launch(
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
        scratch_floats=(ROWS_TOGETHER + 1) * size + 2 * x_size,
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

    fitted = Chebyshev.interpolate(np.vectorize(slope), GELU_DEGREE).convert(kind=Polynomial)
    coefficients = np.zeros(GELU_DEGREE + 1, np.float32)
    coefficients[: len(fitted.coef)] = fitted.coef
    return torch.tensor([eps, _GELU_LIMIT]), torch.from_numpy(coefficients)
