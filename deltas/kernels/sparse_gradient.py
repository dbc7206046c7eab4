"""Computes the gradient of K selected values of a matrix.

For y = x W^T the gradient of W[i, j] is the sum over N tokens of dL/dy[n, i] x[n, j]. Computing it
for selected (i, j) only is a sampled dense-dense matrix multiplication (SDDMM). On a CPU the kernel
reads both matrices in place, block by block of tokens. Each block has a sum of its own, so that the
result does not depend on the number of threads. `deltas.encoder.single_overlay` uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltas.kernels.compiled import SDDMM
from deltas.kernels.runtime import FLOAT_CODES, data_pointer, dtype_and_pointer, kernel

_MIN_BLOCK = 64  # tokens
_MAX_VALUES = 1 << 20  # intermediate values, which bounds the memory for any K


def sddmm(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Sum grad[n, i] x[n, j] over N tokens for each selected (i, j).

    Args:
        grad: float32 or bfloat16 [N, O].
        x: the same dtype [N, I].
        indices: int64 [K], flat indices i I + j into a matrix [O, I].

    Returns:
        float32 [K].
    """
    rows = indices // x.shape[1]
    columns = indices - rows * x.shape[1]
    if x.device.type == "cpu":
        return _read_in_place(grad.contiguous(), x.contiguous(), rows.int(), columns.int())
    return _gathered(grad, x, rows, columns)


def _read_in_place(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    max_blocks = max(1, _MAX_VALUES // max(1, len(rows)))
    block = max(_MIN_BLOCK, -(-len(x) // max_blocks))
    num_blocks = -(-len(x) // block)
    count = len(rows)
    sums = torch.empty(num_blocks, count)
    dtype_code, x_pointer = dtype_and_pointer(x, x.shape, FLOAT_CODES)
    kernel(SDDMM).launch(
        num_blocks,
        block * count,
        block,
        len(x),
        dtype_code,
        grad.shape[1],
        data_pointer(grad, (len(x), grad.shape[1]), x.dtype),
        x.shape[1],
        x_pointer,
        count,
        data_pointer(rows, (count,), torch.int32),
        data_pointer(columns, (count,), torch.int32),
        data_pointer(sums, (num_blocks, count)),
        scratch_floats=grad.shape[1] + x.shape[1],
    )
    return sums.sum(0)


def _gathered(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute the sums from copies of matrix columns, for devices on which copies are cheap."""
    at_once = max(1, _MAX_VALUES // max(1, len(x)))
    # In the transposed matrices a gathered row is contiguous and copied as it is.
    grad, x = grad.t().contiguous(), x.t().contiguous()
    sums = [
        torch.linalg.vecdot(grad.index_select(0, i), x.index_select(0, j))
        for i, j in zip(torch.split(rows, at_once), torch.split(columns, at_once), strict=True)
    ]
    return torch.cat(sums).float()
