"""Multiplies by frozen weights on a CPU, in bfloat16 with prepacked weights and in int8.

Before a bfloat16 product oneDNN brings the weight into its own blocked layout, which takes as long
as the product itself if the batch is short. A frozen weight is brought into that layout once
(weight prepacking). float32 products use another library, which gains next to nothing from it.

Rows and matrices in int8 are defined in `deltas.kernels.int8`.
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
    """Return True if this PyTorch multiplies a small matrix by a prepacked weight correctly."""
    weight = (torch.arange(48 * 40) % 13 - 6).view(48, 40).bfloat16()
    x = (torch.arange(3 * 40) % 7 - 3).view(3, 40).bfloat16()
    try:
        product = _prepacked(weight)(x)
    except (AttributeError, RuntimeError) as error:  # no oneDNN, or one without the operators
        logger.info("weights are not prepacked, since oneDNN refuses: %s", error)
        return False
    return torch.equal(product, x @ weight.t())


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply int8 matrices [N or P, I] and [I, O]: int32 [N or P, O].

    On some CPUs large sums overflow; see `deltas.hardware.multiplies_int8_exactly`.
    """
    return torch._int_mm(a, b)
