"""Whole numbers that stand for floats: what int8 multiplies.

Made by `app.epilogue` on the way, line by line; matrices once, by the bank.

Legend: T lines, O values of a line; a matrix is [O, I].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantised:
    """Lines as whole numbers from -127 to 127: x is about middle + step * number.

    A line's step and middle depend on that line alone, so that no answer depends on the rows beside
    it.

    Attributes:
        values: int8 [T, O].
        steps: float32 [T].
        middles: float32 [T], halfway between a line's smallest and largest value.
    """

    values: Tensor
    steps: Tensor
    middles: Tensor

    @classmethod
    def room_for(cls, lines: int, size: int) -> Quantised:
        """Memory for the whole numbers of T lines of O values."""
        steps, middles = torch.empty(2, lines)
        return cls(torch.empty(lines, size, dtype=torch.int8), steps, middles)


@dataclass(frozen=True)
class QuantisedMatrix:
    """A frozen matrix as whole numbers: W is about steps[:, None] * values.

    Attributes:
        values: int8 [O, I].
        steps: float32 [O].
        sums: float32 [O], of each line of what `values` stand for: what a line's middle adds to its
            products.
    """

    values: Tensor
    steps: Tensor
    sums: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> QuantisedMatrix:
        """Round a float32 matrix [O, I] to 255 steps of each line's largest value."""
        steps = matrix.abs().amax(1) / 127 + 1e-30
        values = (matrix / steps[:, None]).round()
        return cls(values.to(torch.int8), steps, values.sum(1) * steps)
