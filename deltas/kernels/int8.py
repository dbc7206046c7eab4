"""Defines int8 rows and matrices, and the Hadamard transform that they are quantised after.

A few channels of an encoder are many times as large as the others and would leave the others few of
the 255 steps. x W^T equals (x H) (W H)^T if H is orthogonal, so both sides are transformed first:
with a Hadamard matrix H each value becomes a mix of 64, and none is much larger than the others
(QuaRot, Ashkboos et al. 2024, arXiv:2404.00456). QuaRot works H into the weights. Here rows are
transformed as they are quantised, because every task has its own biases and LayerNorms between the
products. The mean of a row is subtracted before, since the transform would gather it in one value
of 64.

Matrices are quantised once; `deltas.kernels.compiled.epilogue` quantises rows and scales products
back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.kernels.compiled import HADAMARD_SIZE


@dataclass(frozen=True)
class Int8Rows:
    """Rows of activations as integers from -127 to 127.

    `hadamard(x - offset)` is about scale * value. The scale and offset of a row depend on that row
    alone, so that its values do not depend on its batch neighbours. The offset is the mean of the
    row, or the middle between its extremes if the width is not a multiple of 64.
    """

    values: Tensor  # int8 [N or P, O]
    scales: Tensor  # float32 [N or P]
    offsets: Tensor  # float32 [N or P]

    @classmethod
    def empty(cls, count: int, width: int) -> Int8Rows:
        """Allocate `count` rows of `width` values."""
        scales, offsets = torch.empty(2, count)
        return cls(torch.empty(count, width, dtype=torch.int8), scales, offsets)

    def gather(self, rows: Tensor) -> Int8Rows:
        """Return the rows at these indices, int64 [P]."""
        parts = (self.values, self.scales, self.offsets)
        return Int8Rows(*(part.index_select(0, rows) for part in parts))


@dataclass(frozen=True)
class Int8Matrix:
    """A frozen matrix W as integers: `hadamard(W)` is about scales[:, None] * values.

    The offset of a row of x enters its products by the sum of each output row of W.
    """

    values: Tensor  # int8 [O, I]
    scales: Tensor  # float32 [O]
    row_sums: Tensor  # float32 [O]

    @classmethod
    def quantise(cls, matrix: Tensor) -> Int8Matrix:
        """Transform a float32 matrix [O, I]; round each output row to 255 steps."""
        row_sums, matrix = matrix.sum(1), hadamard(matrix)
        scales = matrix.abs().amax(1) / 127 + 1e-30
        return cls((matrix / scales[:, None]).round().to(torch.int8), scales, row_sums)


def hadamard(rows: Tensor) -> Tensor:
    """Multiply each 64 neighbouring values of rows [N, O] by H_64 / 8, which is its own inverse.

    Rows whose width is not a multiple of 64 (TinyBERT has 312 and 1,200) are returned unchanged.
    """
    width = rows.shape[1]
    if width % HADAMARD_SIZE:
        return rows
    parts = rows.reshape(-1, HADAMARD_SIZE)
    apart = 1
    while apart < HADAMARD_SIZE:
        pairs = parts.view(-1, 2, apart)
        parts = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
        apart *= 2
    return parts.reshape(-1, width) / math.sqrt(HADAMARD_SIZE)
