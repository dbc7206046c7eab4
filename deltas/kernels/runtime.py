"""Compiles kernels with numba and runs them in PyTorch's own threads.

A *kernel* is a numba function of one argument: the address of an int64 array, its arguments. The
first argument is a counter from which each thread fetches work items until none are left. PyTorch's
OpenMP runs the kernel, because a second thread pool would compete with PyTorch's for the cores.
Where PyTorch uses another OpenMP than GNU's, the kernel runs in the calling thread. numba compiles
at first use and keeps the code on disk.

`deltas.kernels.sparse_gradient` is the shortest kernel; vector instructions that the compiler does
not find by itself are in `deltas.kernels.simd`.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

logger = logging.getLogger(__name__)

# LLVM uses half of AVX-512's registers unless told otherwise: measured, 0.6 times the speed.
if "NUMBA_CPU_FEATURES" not in os.environ and "NUMBA_CPU_NAME" not in os.environ:
    _features = binding.get_host_cpu_features()
    if _features.get("avx512f"):
        numba.config.CPU_NAME = binding.get_host_cpu_name()
        numba.config.CPU_FEATURES = f"{_features.flatten()},-prefer-256-bit"

# Codes by which kernels tell dtypes.
F32, BF16, I32 = 0, 1, 2
FLOAT_CODES = {torch.float32: F32, torch.bfloat16: BF16}
DTYPE_CODES = {**FLOAT_CODES, torch.int32: I32}

_UPPER = np.int32(16)  # a bfloat16 has the upper bits of a float32
_ALMOST_HALF, _MAGNITUDE, _SIGN = np.int32(0x7FFF), np.int32(0x7FFFFFFF), np.int32(31)
_NAN = np.int32(0x7FC00000)
_INLINED = ("runtime.py", "simd.py", "int8.py")  # files whose functions kernels of others inline
_SMALL = 1 << 13  # number of values below which waking another thread takes longer than the work

F = TypeVar("F", bound=Callable[..., Any])
# Sums may be reordered. NaN and infinity are kept, since a broken delta is detected by them.
_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def compiled(function: F) -> F:
    """Compile a function that kernels call; it is inlined into them."""
    return cast(F, numba.njit(**_OPTIONS, forceinline=True)(function))


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


class Kernel:
    """A compiled kernel.

    Args:
        function: takes a void pointer to its int64 arguments: the counter, the number of work
            items, the number of items to fetch at a time, and the arguments of `launch`.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        _key_cache_by_content()
        try:
            made = numba.cfunc("void(voidptr)", cache=True, **_OPTIONS)(function)
        except Exception as error:  # noqa: BLE001 - no folder for it, a full disk, a damaged file
            logger.warning(
                "compiled kernels cannot be cached on disk (%s); every process compiles them again",
                error,
            )
            made = numba.cfunc("void(voidptr)", **_OPTIONS)(function)
        self._made = made  # keeps the code alive
        self._address: int = made.address

    def launch(self, num_items: int, values_per_item: int, *arguments: int) -> None:
        """Run the kernel in as many threads as PyTorch has and the work is worth.

        Args:
            num_items: number of work items.
            values_per_item: values that one item touches, a measure of its cost.
            arguments: int64 sizes, and addresses of contiguous memory that stays alive.
        """
        threads = torch.get_num_threads() if num_items * values_per_item > _SMALL else 1
        at_a_time = max(1, min(16, num_items // (4 * threads)))
        # `array` instead of numpy, which takes 20 us to tell its address.
        packed = array("q", (0, num_items, at_a_time, *arguments))
        _parallel()(self._address, packed.buffer_info()[0], threads)


@cache
def _key_cache_by_content() -> None:
    """Point numba's disk cache to a folder named by the content of `_INLINED`.

    numba takes cached code for valid as long as the kernel's own file is unchanged, even if the
    kernel inlines functions of other files.
    """
    if not numba.config.CACHE_DIR:  # set by the user as NUMBA_CACHE_DIR
        folder = Path(__file__).parent
        sources = b"".join((folder / name).read_bytes() for name in _INLINED)
        digest = hashlib.sha256(sources).hexdigest()[:16]
        numba.config.CACHE_DIR = str(folder / "__pycache__" / f"kernels-{digest}")


@cache
def _parallel() -> Callable[[int, int, int], None]:
    """Return a function (kernel address, arguments address, threads) that runs a kernel."""
    path = _loaded_openmp()
    if path is None:
        return lambda kernel, arguments, _threads: ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)(
            arguments
        )
    run: Any = ctypes.CDLL(path).GOMP_parallel
    run.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    run.restype = None
    return lambda kernel, arguments, threads: run(kernel, arguments, threads, 0)


def _loaded_openmp() -> str | None:
    """Return the path of the GNU OpenMP in this process, PyTorch's own if there are several."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    loaded = {line.split(maxsplit=5)[-1] for line in maps if "/libgomp" in line}
    home = str(Path(torch.__file__).resolve().parent)  # links resolved, as in /proc/self/maps
    return min(loaded, key=lambda path: (not path.startswith(home), path), default=None)


def data_pointer(
    tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> int:
    """Return the address of a tensor's values, 0 for None.

    Raises:
        ValueError: the tensor has another shape or dtype, or is not contiguous.
    """
    if tensor is None:
        return 0
    if tensor.shape != shape or tensor.dtype != dtype:
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"needs {dtype} {shape}, got {got}")
    if not tensor.is_contiguous():
        raise ValueError(f"needs contiguous memory, got strides {tensor.stride()}")
    return tensor.data_ptr()


def dtype_and_pointer(
    tensor: Tensor | None, shape: tuple[int, ...], codes: Mapping[torch.dtype, int]
) -> tuple[int, int]:
    """Return a tensor's dtype code, one of `codes`, and its `data_pointer`; 0, 0 for None."""
    if tensor is None:
        return 0, 0
    if tensor.dtype not in codes:
        raise ValueError(f"needs one of {', '.join(map(str, codes))}, got {tensor.dtype}")
    return codes[tensor.dtype], data_pointer(tensor, shape, tensor.dtype)


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
