"""Frozen matrices, as CPUs multiply by them.

In bfloat16 a product with a plain matrix brings it into the order in which oneDNN multiplies first,
which for a short batch takes as long as the product itself. A frozen matrix is packed once. float32
has another library, which gains next to nothing by that.

Legend: T lines; a matrix is [O, I].
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)


def prepack(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Prepare a frozen weight on a CPU for multiplication.

    Args:
        weight: float32 or bfloat16 [O, I].

    Returns:
        A function from x [N or P, I], of the weight's dtype, to x W^T [N or P, O].
    """
    if weight.dtype == torch.bfloat16 and can_prepack():
        return _prepacked(weight)
    return partial(F.linear, weight=weight)


def _prepacked(weight: Tensor) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def multiply(x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return product

    return multiply


@cache
def can_prepack() -> bool:
    """Whether this machine's PyTorch packs matrices, as a trial on a small one shows."""
    matrix = (torch.arange(48 * 40) % 13 - 6).view(48, 40).bfloat16()
    x = (torch.arange(3 * 40) % 7 - 3).view(3, 40).bfloat16()
    try:
        product = _prepacked(matrix)(x)
    except (AttributeError, RuntimeError) as error:  # no oneDNN, or one that doesn't do it
        logger.info("matrices stay as they are: %s", error)
        return False
    return torch.equal(product, x @ matrix.t())
