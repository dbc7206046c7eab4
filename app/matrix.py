"""Frozen matrices, as CPUs multiply by them.

A product with a plain matrix brings it into the order in which oneDNN multiplies first, which for a
short batch takes as long as the product itself. A frozen matrix is packed once.

Legend: T lines; a matrix is [O, I].
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

# Lines of float32 that are multiplied by a packed matrix. More gain 2 %, and for each number of
# them oneDNN compiles code, 1.4 MB a product, where the library for plain matrices has one for all.
MOST_PACKED = 128


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
        matrix: float32 or bfloat16 [O, I].
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)

    def multiply(self, x: Tensor) -> Tensor:
        """The same as a plain matrix does."""
        if x.dtype == torch.float32 and len(x) > MOST_PACKED:
            return F.linear(x, self._matrix)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product


def matrix_of(weight: Tensor) -> PlainMatrix | PackedMatrix:
    """A frozen weight [O, I] on a CPU, ready to be multiplied by."""
    return PackedMatrix(weight) if can_pack(weight.dtype) else PlainMatrix(weight)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's PyTorch packs matrices of a dtype, as a trial on a small one shows."""
    matrix = (torch.arange(48 * 40) % 13 - 6).view(48, 40).to(dtype)
    x = (torch.arange(3 * 40) % 7 - 3).view(3, 40).to(dtype)
    try:
        product = PackedMatrix(matrix).multiply(x)
    except (AttributeError, RuntimeError) as error:  # no oneDNN, or one that doesn't do it
        logger.info("matrices stay as they are: %s", error)
        return False
    return torch.equal(product, x @ matrix.t())
