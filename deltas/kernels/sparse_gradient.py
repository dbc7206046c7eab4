"""Computes the gradient of K selected values of a matrix.

For y = x W^T the gradient of W[i, j] is the sum over N tokens of dL/dy[n, i] x[n, j]. Computing it
for selected (i, j) only is a sampled dense-dense matrix multiplication (SDDMM). On a CPU the kernel
reads both matrices in place, block by block of tokens. Each block has a sum of its own, so that the
result does not depend on the number of threads. `deltas.encoder.single_overlay` uses it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from deltas.kernels.runtime import (
    FLOAT_CODES,
    Kernel,
    as_pointer,
    compiled,
    data_pointer,
    dtype_and_pointer,
    fetch_add,
    read_row,
)

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
    _kernel().launch(
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


@cache
def _kernel() -> Kernel:
    return Kernel(_sddmm_kernel)


@compiled
def _add_products(grad: Any, x: Any, rows: Any, columns: Any, count: int, sums: Any) -> None:
    for k in range(count):
        sums[k] += grad[rows[k]] * x[columns[k]]


# Positions of the kernel's arguments.
(
    _BLOCK_TOKENS,
    _TOKENS,
    _DTYPE_CODE,
    _GRAD_SIZE,
    _GRAD,
    _X_SIZE,
    _X,
    _COUNT,
    _ROWS,
    _COLUMNS,
    _SUMS,
    _NUM_ARGUMENTS,
) = range(3, 15)


def _sddmm_kernel(arguments: Any) -> None:
    """Compute the sums of each block; a work item is one block of tokens."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    blocks, at_a_time = a[1], a[2]
    block, tokens, dtype_code, count = a[_BLOCK_TOKENS], a[_TOKENS], a[_DTYPE_CODE], a[_COUNT]
    rows = carray(as_pointer(a[_ROWS]), count, np.int32)
    columns = carray(as_pointer(a[_COLUMNS]), count, np.int32)
    grad, x = np.empty(a[_GRAD_SIZE], np.float32), np.empty(a[_X_SIZE], np.float32)
    while True:
        start = fetch_add(arguments, at_a_time)
        if start >= blocks:
            break
        for number in range(start, min(start + at_a_time, blocks)):
            sums = carray(as_pointer(a[_SUMS] + 4 * number * count), count, np.float32)
            sums[:] = np.float32(0)
            for n in range(block * number, min(block * (number + 1), tokens)):
                read_row(dtype_code, a[_GRAD], n, a[_GRAD_SIZE], grad)
                read_row(dtype_code, a[_X], n, a[_X_SIZE], x)
                _add_products(grad, x, rows, columns, count, sums)
