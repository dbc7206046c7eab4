"""Runs kernels in PyTorch's own threads.

A *kernel* is a function of one argument: the address of an int64 array, its arguments
(`deltas.kernels.compiled.language`). Each thread fetches work items until none are left. PyTorch's
OpenMP runs the kernel, because a second thread pool would compete with PyTorch's for the cores.
Where PyTorch uses another OpenMP than GNU's, the kernel runs in the calling thread.

`deltas.kernels.compiled` has the kernels, and `deltas.kernels.compiled.machine_code` loads them.
"""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.kernels.compiled import BF16, F32, I32, INFERENCE, machine_code

FLOAT_CODES = {torch.float32: F32, torch.bfloat16: BF16}
DTYPE_CODES = {**FLOAT_CODES, torch.int32: I32}

_SMALL = 1 << 13  # number of values below which waking another thread takes longer than the work
_local = threading.local()
_LINE_FLOATS = 16  # of a cache line, which no two threads share


class Kernel:
    """A compiled kernel.

    Args:
        name: "module:function"; the function takes a void pointer to its int64 arguments.
    """

    def __init__(self, name: str) -> None:
        self._code = machine_code.load(name)

    def launch(
        self, num_items: int, values_per_item: int, *arguments: int, scratch_floats: int = 0
    ) -> None:
        """Run the kernel in as many threads as PyTorch has and the work is worth.

        Args:
            num_items: number of work items.
            values_per_item: values that one item touches, a measure of its cost.
            arguments: int64 sizes, and addresses of contiguous memory that stays alive.
            scratch_floats: float32 of scratch memory for each thread.
        """
        threads = torch.get_num_threads() if num_items * values_per_item > _SMALL else 1
        at_a_time = max(1, min(16, num_items // (4 * threads)))
        each = -(-scratch_floats // _LINE_FLOATS) * _LINE_FLOATS
        head = 0, num_items, at_a_time, 0, _scratch(threads * each), 4 * each
        # `array` instead of numpy, which takes 20 us to tell its address.
        packed = array("q", (*head, *arguments))
        _parallel()(self._code.address, packed.buffer_info()[0], threads)


@cache
def kernel(name: str) -> Kernel:
    """Return the only instance of a kernel in this process."""
    return Kernel(name)


@cache
def load_for_inference() -> None:
    """Load the kernels of a forward pass; those that are not on disk are compiled in parallel."""
    machine_code.begin(INFERENCE)
    for name in INFERENCE:
        kernel(name)


def _scratch(num_floats: int) -> int:
    """Return the address of scratch memory, which the calling thread keeps for its next kernel."""
    try:
        address, available, _ = _local.scratch
    except AttributeError:
        available = -1
    if available < num_floats:
        memory = torch.empty(num_floats)
        address = memory.data_ptr()
        _local.scratch = address, num_floats, memory
    return int(address)


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
