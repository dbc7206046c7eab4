"""Defines what kernels are written with: a decorator, intrinsics, and rows of several dtypes.

A *kernel* is a function of one argument: the address of an int64 array. Its first numbers are the
`HEAD` that every kernel has: a counter from which each thread fetches work items until none are
left, the number of items, the number of items to fetch at a time, and three numbers for
`own_scratch`. The rest are the kernel's own.

A kernel allocates nothing and raises nothing, so that its machine code runs in a process without
numba (`deltas.kernels.compiled.machine_code`). Tested by
tests/unit/deltas/kernels/test_runtime.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltas.kernels.compiled import BF16, F32, HEAD

# LLVM uses half of AVX-512's registers unless told otherwise: measured, 0.6 times the speed.
if "NUMBA_CPU_FEATURES" not in os.environ and "NUMBA_CPU_NAME" not in os.environ:
    _features = binding.get_host_cpu_features()
    if _features.get("avx512f"):
        numba.config.CPU_NAME = binding.get_host_cpu_name()
        numba.config.CPU_FEATURES = f"{_features.flatten()},-prefer-256-bit"

_THREADS, _SCRATCH, _SCRATCH_BYTES = range(3, HEAD)
_UPPER = np.int32(16)  # a bfloat16 has the upper bits of a float32
_ALMOST_HALF, _MAGNITUDE, _SIGN = np.int32(0x7FFF), np.int32(0x7FFFFFFF), np.int32(31)
_NAN = np.int32(0x7FC00000)

F = TypeVar("F", bound=Callable[..., Any])
# Sums may be reordered. NaN and infinity are kept, since a broken delta is detected by them.
OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def compiled(function: F) -> F:
    """Compile a function that kernels call; it is inlined into them."""
    return cast(F, numba.njit(**OPTIONS, forceinline=True)(function))


def _as_pointer(_context: Any, address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


def _fetch_add(_context: Any, counter: Any, step: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.voidptr, types.int64), generate


def _float_of_bits(_context: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


# Callable from kernels only.
as_pointer: Any = intrinsic(_as_pointer)
"""(address): an int64 address as a pointer, for `numba.carray`."""
fetch_add: Any = intrinsic(_fetch_add)
"""(counter, step): atomically adds to the int64 at a pointer; returns the value before."""
float_of_bits: Any = intrinsic(_float_of_bits)
"""(bits): reinterprets an int32 as float32."""


@compiled
def own_scratch(a: Any) -> Any:
    """Return the address of scratch memory that no other thread uses; call it once."""
    thread = fetch_add(as_pointer(np.int64(a.ctypes.data) + 8 * _THREADS), 1)
    return a[_SCRATCH] + thread * a[_SCRATCH_BYTES]


@compiled
def read_row(dtype_code: int, address: int, row: int, size: int, into: Any) -> None:
    """Copy a matrix row of float32, bfloat16 or int32 into float32 values."""
    if dtype_code == F32:
        floats = numba.carray(as_pointer(address + 4 * row * size), size, np.float32)
        for o in range(size):
            into[o] = floats[o]
    elif dtype_code == BF16:
        halves = numba.carray(as_pointer(address + 2 * row * size), size, np.uint16)
        bits = into.view(np.int32)
        for o in range(size):
            bits[o] = np.int32(halves[o]) << _UPPER
    else:
        integers = numba.carray(as_pointer(address + 4 * row * size), size, np.int32)
        for o in range(size):
            into[o] = np.float32(integers[o])


@compiled
def write_row(dtype_code: int, address: int, row: int, size: int, values: Any) -> None:
    """Copy float32 values into a matrix row of float32 or bfloat16 (to nearest, ties to even)."""
    if dtype_code == F32:
        floats = numba.carray(as_pointer(address + 4 * row * size), size, np.float32)
        for o in range(size):
            floats[o] = values[o]
    else:
        halves = numba.carray(as_pointer(address + 2 * row * size), size, np.uint16)
        bits = values.view(np.int32)
        for o in range(size):
            odd = (bits[o] >> _UPPER) & np.int32(1)
            rounded = bits[o] + _ALMOST_HALF + odd
            # The addition would carry some kinds of NaN over into a zero.
            halves[o] = np.uint16((_NAN if np.isnan(values[o]) else rounded) >> _UPPER)


@compiled
def sortable_bits(bits: Any) -> Any:
    """Map the bits of a float32 to an int32 with the same order; the map is its own inverse."""
    return np.int32(bits ^ ((bits >> _SIGN) & _MAGNITUDE))
