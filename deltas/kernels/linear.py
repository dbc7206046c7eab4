"""Frozen matrices, as CPUs multiply by them.

In bfloat16 a product with a plain matrix brings it into the order in which oneDNN multiplies first,
which for a short batch takes as long as the product itself. A frozen matrix is packed once. float32
has another library, which gains next to nothing by that.

Legend: T lines; a matrix is [O, I].
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)


class PlainMatrix:
    """A matrix as it is: float32 or bfloat16 [O, I]."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def multiply(self, x: Tensor) -> Tensor:
        """Each line of x [T, I], of the matrix's dtype, times its transpose: [T, O]."""
        return F.linear(x, self._matrix)


class PackedMatrix:
    """The same, packed by oneDNN.

    Args:
        matrix: bfloat16 [O, I]; not kept.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)

    def multiply(self, x: Tensor) -> Tensor:
        """The same as a plain matrix does."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product


def matrix_of(weight: Tensor) -> PlainMatrix | PackedMatrix:
    """A frozen weight [O, I] on a CPU, ready to be multiplied by."""
    packs = weight.dtype == torch.bfloat16 and can_pack()
    return PackedMatrix(weight) if packs else PlainMatrix(weight)


@cache
def can_pack() -> bool:
    """Whether this machine's PyTorch packs matrices, as a trial on a small one shows."""
    matrix = (torch.arange(48 * 40) % 13 - 6).view(48, 40).bfloat16()
    x = (torch.arange(3 * 40) % 7 - 3).view(3, 40).bfloat16()
    try:
        product = PackedMatrix(matrix).multiply(x)
    except (AttributeError, RuntimeError) as error:  # no oneDNN, or one that doesn't do it
        logger.info("matrices stay as they are: %s", error)
        return False
    return torch.equal(product, x @ matrix.t())
