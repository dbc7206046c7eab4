"""The gradient of K selected values of a matrix.

For y = x W^T the gradient of W[i, j] is the sum over T lines of dL/dy[t, i] x[t, j]. On CPUs both
are read where they lie, block by block of lines; each block is summed by itself, so that the result
does not depend on the number of threads.

Legend: T lines, K selected values; W is [O, I].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from deltas.kernels.runtime import (
    FLOATS,
    Kernel,
    address,
    compiled,
    data_pointer,
    dtype_and_pointer,
    fetch_add,
    read_line,
)

_BLOCK = 64  # lines, at least
_VALUES_AT_ONCE = 1 << 20  # bounds the memory that a gradient takes on the way, whatever K is


def sddmm(grad: Tensor, x: Tensor, places: Tensor) -> Tensor:
    """Sum over T of grad[t, i] x[t, j] for each place (i, j).

    Args:
        grad: float32 or bfloat16 [T, O].
        x: the same dtype [T, I].
        places: int64 [K], i I + j each.

    Returns:
        float32 [K].
    """
    rows = places // x.shape[1]
    columns = places - rows * x.shape[1]
    if x.device.type == "cpu":
        return _read_in_place(grad.contiguous(), x.contiguous(), rows.int(), columns.int())
    return _gathered(grad, x, rows, columns)


def _read_in_place(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    most_blocks = max(1, _VALUES_AT_ONCE // max(1, len(rows)))
    block = max(_BLOCK, -(-len(x) // most_blocks))
    num_blocks = -(-len(x) // block)
    count = len(rows)
    sums = torch.empty(num_blocks, count)
    kind, place = dtype_and_pointer(x, x.shape, FLOATS)
    _kernel().launch(
        num_blocks,
        block * count,
        block,
        len(x),
        kind,
        grad.shape[1],
        data_pointer(grad, (len(x), grad.shape[1]), x.dtype),
        x.shape[1],
        place,
        count,
        data_pointer(rows, (count,), torch.int32),
        data_pointer(columns, (count,), torch.int32),
        data_pointer(sums, (num_blocks, count)),
    )
    return sums.sum(0)


def _gathered(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same from copies of the lines, for devices on which those are cheap."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, len(x)))
    # Lines of the transposed arrays are contiguous, so a gathered one is a plain copy.
    grad, x = grad.t().contiguous(), x.t().contiguous()
    sums = [
        torch.linalg.vecdot(grad.index_select(0, i), x.index_select(0, j))
        for i, j in zip(torch.split(rows, at_once), torch.split(columns, at_once), strict=True)
    ]
    return torch.cat(sums).float()


@cache
def _kernel() -> Kernel:
    return Kernel(_products)


@compiled
def _add_products(grad: Any, x: Any, rows: Any, columns: Any, count: int, sums: Any) -> None:
    for k in range(count):
        sums[k] += grad[rows[k]] * x[columns[k]]


# Where the kernel's arguments lie.
(
    _LINES_A_BLOCK,
    _LINES,
    _KIND,
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


def _products(arguments: Any) -> None:
    """The kernel; a line of `Kernel.launch` is a block of lines here."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    blocks, at_a_time = a[1], a[2]
    block, lines, kind, count = a[_LINES_A_BLOCK], a[_LINES], a[_KIND], a[_COUNT]
    rows = carray(address(a[_ROWS]), count, np.int32)
    columns = carray(address(a[_COLUMNS]), count, np.int32)
    grad, x = np.empty(a[_GRAD_SIZE], np.float32), np.empty(a[_X_SIZE], np.float32)
    while True:
        start = fetch_add(arguments, at_a_time)
        if start >= blocks:
            break
        for number in range(start, min(start + at_a_time, blocks)):
            sums = carray(address(a[_SUMS] + 4 * number * count), count, np.float32)
            sums[:] = np.float32(0)
            for t in range(block * number, min(block * (number + 1), lines)):
                read_line(kind, a[_GRAD], t, a[_GRAD_SIZE], grad)
                read_line(kind, a[_X], t, a[_X_SIZE], x)
                _add_products(grad, x, rows, columns, count, sums)
