"""Whole numbers that stand for floats: what int8 multiplies.

Made by `deltas.kernels.epilogue` on the way, line by line; matrices once, by the bank. Both are hadamard first: a
few of an encoder's channels are many times as large as the others, and would leave these few of the
255 steps. x W^T is the same for (x H) and (W H), if H is orthogonal; with a Hadamard matrix for H
each hadamard value is made of 64, and none is much larger than others (QuaRot, Ashkboos et al. 2024,
arXiv:2404.00456). There H is worked into the weights; here lines are hadamard when they are rounded,
since each task has LayerNorms and biases of its own in between. A line's mean is taken out before:
mixing would gather it in one value of 64.

Legend: T lines, O values of a line; a matrix is [O, I].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltas.kernels.simd import MIXED


@dataclass(frozen=True)
class Int8Rows:
    """Lines as whole numbers from -127 to 127: `hadamard(x - offset)` is about step * number.

    A line's step and offset depend on that line alone, so that its numbers don't depend on the rows
    beside it.

    Attributes:
        values: int8 [T, O].
        scales: float32 [T].
        offsets: float32 [T], the mean of each line of x; where lines are not hadamard, halfway between
            the line's extremes.
    """

    values: Tensor
    scales: Tensor
    offsets: Tensor

    @classmethod
    def empty(cls, lines: int, size: int) -> Int8Rows:
        """Memory for the whole numbers of T lines of O values."""
        steps, offsets = torch.empty(2, lines)
        return cls(torch.empty(lines, size, dtype=torch.int8), steps, offsets)


@dataclass(frozen=True)
class Int8Matrix:
    """A frozen matrix as whole numbers: `hadamard(W)` is about steps[:, None] * values.

    Attributes:
        values: int8 [O, I].
        scales: float32 [O].
        row_sums: float32 [O], of each line of W: what a line's offset adds to its products.
    """

    values: Tensor
    scales: Tensor
    row_sums: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Int8Matrix:
        """Mix a float32 matrix [O, I], round it to 255 steps of each line's largest value."""
        sums, matrix = matrix.sum(1), hadamard(matrix)
        steps = matrix.abs().amax(1) / 127 + 1e-30
        return cls((matrix / steps[:, None]).round().to(torch.int8), steps, sums)


def hadamard(lines: Tensor) -> Tensor:
    """Each 64 neighbours of lines [T, O] times H_64 / 8, which is its own inverse.

    Lines of another length than a multiple of 64 (TinyBERT has 312 and 1,200) stay as they are.
    """
    size = lines.shape[1]
    if size % MIXED:
        return lines
    parts = lines.reshape(-1, MIXED)
    apart = 1
    while apart < MIXED:
        pairs = parts.view(-1, 2, apart)
        parts = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
        apart *= 2
    return parts.reshape(-1, size) / math.sqrt(MIXED)
