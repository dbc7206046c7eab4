"""The kernel behind `deltas.kernels.sparse_gradient`, which states what it computes.

The shortest kernel. Each block of tokens has a sum of its own, so that the result does not depend
on the number of threads.

Its own arguments are:

- the number of tokens of a block and of the batch;
- the dtype of `grad` [N, O] and `x` [N, I], then the width and the address of each;
- K, and the addresses of the int32 rows and columns [K] and of the float32 sums of each block [K].

A thread needs O + I floats of scratch memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from deltas.kernels.compiled import HEAD
from deltas.kernels.compiled.language import as_pointer, compiled, fetch_add, own_scratch, read_row


@compiled
def _add_products(grad: Any, x: Any, rows: Any, columns: Any, count: int, sums: Any) -> None:
    """Add the products of one token to the sums of its block."""
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
) = range(HEAD, HEAD + 12)


def kernel(arguments: Any) -> None:
    """Compute the sums of each block; a work item is one block of tokens.

    Both rows of a token are read as floats once, and then serve all K products of that token, which
    are scattered over the rows.
    """
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    blocks, at_a_time = a[1], a[2]
    block, tokens, dtype_code, count = a[_BLOCK_TOKENS], a[_TOKENS], a[_DTYPE_CODE], a[_COUNT]
    rows = carray(as_pointer(a[_ROWS]), count, np.int32)
    columns = carray(as_pointer(a[_COLUMNS]), count, np.int32)
    scratch = own_scratch(a)
    grad = carray(as_pointer(scratch), a[_GRAD_SIZE], np.float32)
    x = carray(as_pointer(scratch + 4 * a[_GRAD_SIZE]), a[_X_SIZE], np.float32)
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
