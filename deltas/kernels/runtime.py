"""Loops that PyTorch has no operation for, compiled by numba and run in PyTorch's own threads.

A *kernel* is a numba function of one argument, the address of an int64 array: its arguments, first
of them a counter from which each thread claims lines until none are left. PyTorch's OpenMP runs it,
so that no second team of threads competes with PyTorch's own. Where PyTorch has another OpenMP the
kernel runs in the calling thread. Compiled at first use; numba keeps the code on disk.
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

# LLVM takes half of AVX-512's registers unless told otherwise: measured, 0.6 times the speed.
if "NUMBA_CPU_FEATURES" not in os.environ and "NUMBA_CPU_NAME" not in os.environ:
    _features = binding.get_host_cpu_features()
    if _features.get("avx512f"):
        numba.config.CPU_NAME = binding.get_host_cpu_name()
        numba.config.CPU_FEATURES = f"{_features.flatten()},-prefer-256-bit"

# Kinds of numbers that `read_line` reads, and where they come from.
F32, BF16, I32 = 0, 1, 2
FLOATS = {torch.float32: F32, torch.bfloat16: BF16}
KINDS = {**FLOATS, torch.int32: I32}

_UPPER = np.int32(16)  # bits of a bfloat16 are the upper ones of a float32
_ALMOST_HALF, _MAGNITUDE, _SIGN = np.int32(0x7FFF), np.int32(0x7FFFFFFF), np.int32(31)
_NAN = np.int32(0x7FC00000)
_CALLED = ("runtime.py", "simd.py")  # files whose functions kernels of other files call
_SMALL = 1 << 13  # values; waking another thread takes longer than so many


F = TypeVar("F", bound=Callable[..., Any])
# Sums may be reordered; NaN and infinity come through: what a bad delta computes is found by them.
_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def compiled(function: F) -> F:
    """Mark a function that kernels call, or another such function does."""
    return cast(F, numba.njit(**_OPTIONS, forceinline=True)(function))


def _address(_context: Any, place: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(place), generate


def _fetch_add(_context: Any, counter: Any, step: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.int64(types.voidptr, types.int64), generate


def _float_of_bits(_context: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


# For kernels only.
address: Any = intrinsic(_address)
"""(place): an int64 address as a pointer, for `numba.carray`."""
fetch_add: Any = intrinsic(_fetch_add)
"""(counter, step): add to the int64 at a pointer, safe between threads; returns what was there."""
float_of_bits: Any = intrinsic(_float_of_bits)
"""(bits): the float32 whose bits an int32 has."""


class Kernel:
    """A compiled kernel.

    Args:
        function: takes a void pointer to its arguments; the first is the counter, the second the
            number of lines, the third how many of them to fetch_add at a time.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        _keep_code_apart()
        try:
            made = numba.cfunc("void(voidptr)", cache=True, **_OPTIONS)(function)
        except Exception as error:  # noqa: BLE001 - no place for it, a full disk, a damaged file
            logger.warning("compiled code is not kept (%s): each process compiles anew", error)
            made = numba.cfunc("void(voidptr)", **_OPTIONS)(function)
        self._made = made  # keeps the code alive
        self._address: int = made.address

    def launch(self, num_lines: int, values_a_line: int, *arguments: int) -> None:
        """Run on so many lines, in as many threads as PyTorch has and the work is worth.

        Args:
            num_lines: T.
            values_a_line: how much work a line is.
            arguments: int64 each: sizes, or addresses of contiguous memory that stays alive.
        """
        threads = torch.get_num_threads() if num_lines * values_a_line > _SMALL else 1
        at_a_time = max(1, min(16, num_lines // (4 * threads)))
        # Not in numpy, which takes 20 us to tell an address.
        packed = array("q", (0, num_lines, at_a_time, *arguments))
        _parallel()(self._address, packed.buffer_info()[0], threads)


@cache
def _keep_code_apart() -> None:
    """Have numba keep code in a folder named by the content of the files that kernels call.

    To numba, kept code is good as long as the kernel's own file is, whatever it calls in others.
    """
    if not numba.config.CACHE_DIR:  # NUMBA_CACHE_DIR, where somebody has set it
        folder = Path(__file__).parent
        called = b"".join((folder / name).read_bytes() for name in _CALLED)
        digest = hashlib.sha256(called).hexdigest()[:16]
        numba.config.CACHE_DIR = str(folder / "__pycache__" / f"kernels-{digest}")


@cache
def _parallel() -> Callable[[int, int, int], None]:
    """A function (kernel's address, its arguments' address, threads) that runs a kernel."""
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
    """The GNU OpenMP that this process has loaded, PyTorch's own if there are several."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return None
    loaded = {line.split(maxsplit=5)[-1] for line in maps if "/libgomp" in line}
    home = str(Path(torch.__file__).resolve().parent)  # as the system sees it
    return min(loaded, key=lambda path: (not path.startswith(home), path), default=None)


def data_pointer(
    tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> int:
    """Where a tensor's values lie, 0 for none.

    Raises:
        ValueError: of another shape or dtype, or not one after the other.
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
    tensor: Tensor | None, shape: tuple[int, ...], kinds: Mapping[torch.dtype, int]
) -> tuple[int, int]:
    """The kind of a tensor's numbers, one of `kinds`, and where they lie; 0, 0 for none.

    Raises:
        ValueError: of another shape or dtype, or not one after the other.
    """
    if tensor is None:
        return 0, 0
    if tensor.dtype not in kinds:
        raise ValueError(f"needs one of {', '.join(map(str, kinds))}, got {tensor.dtype}")
    return kinds[tensor.dtype], data_pointer(tensor, shape, tensor.dtype)


@compiled
def read_line(kind: int, place: int, line: int, size: int, into: Any) -> None:
    """Copy a line of float32, bfloat16 or int32 into float32 values."""
    if kind == F32:
        floats = numba.carray(address(place + 4 * line * size), size, np.float32)
        for o in range(size):
            into[o] = floats[o]
    elif kind == BF16:
        halves = numba.carray(address(place + 2 * line * size), size, np.uint16)
        bits = into.view(np.int32)
        for o in range(size):
            bits[o] = np.int32(halves[o]) << _UPPER
    else:
        whole = numba.carray(address(place + 4 * line * size), size, np.int32)
        for o in range(size):
            into[o] = np.float32(whole[o])


@compiled
def write_line(kind: int, place: int, line: int, size: int, values: Any) -> None:
    """Copy float32 values into a line of float32 or bfloat16 (to nearest, ties to even)."""
    if kind == F32:
        floats = numba.carray(address(place + 4 * line * size), size, np.float32)
        for o in range(size):
            floats[o] = values[o]
    else:
        halves = numba.carray(address(place + 2 * line * size), size, np.uint16)
        bits = values.view(np.int32)
        for o in range(size):
            odd = (bits[o] >> _UPPER) & np.int32(1)
            rounded = bits[o] + _ALMOST_HALF + odd
            # Adding would carry some kinds of NaN over into a zero.
            halves[o] = np.uint16((_NAN if np.isnan(values[o]) else rounded) >> _UPPER)


@compiled
def sortable_bits(bits: Any) -> Any:
    """A float32's bits as an int32 that is sortable_bits as the floats are; its own inverse."""
    return np.int32(bits ^ ((bits >> _SIGN) & _MAGNITUDE))
