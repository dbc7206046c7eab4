"""Choose the device and the precision, and set up the memory allocator and oneDNN.

`deltas.kernels` holds the kernels themselves; `app.process.lifetime` and `training.fit` call the
setup.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch

from deltas.errors import BackboneError
from deltas.kernels.linear import int8_matmul
from deltas.kernels.private_apis import has_amx_tiles, has_avx512_bf16

logger = logging.getLogger(__name__)

# Options of glibc's mallopt (malloc.h): allocate blocks up to 32 MB, its maximum, on the heap and
# not as mappings; return only free memory beyond 1 GiB; use one heap for all threads.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MALLOC_OPTIONS = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30), (_M_ARENA_MAX, 1))

# The dtype of each floating-point precision; `dtype_of` also answers for "int8".
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(wanted: str = "auto") -> torch.device:
    """Resolve "auto", "cpu" or "cuda".

    Raises:
        BackboneError: CUDA was asked for and is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BackboneError(
            "device 'cuda' was asked for, but torch finds no CUDA device; use 'auto' or 'cpu'"
        )
    return torch.device(wanted)


def pick_precision(wanted: str, device: torch.device) -> str:
    """Resolve "auto", "fp32", "bf16" or "int8"; "auto" takes bf16 if the hardware runs it faster.

    Among CPUs, bf16 is faster on those with AMX and on AMD's with AVX-512 BF16. On a Xeon with
    AVX-512 BF16 alone it has half the speed of float32, on a CPU without either a tenth (decision
    0011). This is a fixed rule, not a timing, because a seed must always give the same run. "auto"
    never takes int8, which changes answers by more than rounding.

    Raises:
        BackboneError: int8 on another device than a CPU, or on a CPU with inexact int8 products;
            bf16 on a GPU without it.
    """
    if wanted == "int8" and device.type != "cpu":
        raise BackboneError(f"precision 'int8' runs on CPUs only, not on {device.type!r}")
    if wanted == "int8" and not multiplies_int8_exactly():
        raise BackboneError(
            "precision 'int8' needs a CPU with exact int8 products (AVX-512 VNNI, AVX-VNNI or "
            "AMX); on this one, large sums overflow; use 'auto'"
        )
    has_amx = device.type == "cpu" and has_amx_tiles()
    if wanted == "int8" and has_amx:
        logger.warning("this CPU has AMX, on which 'bf16' is faster than 'int8'")
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bf16" and on_gpu and not has_bf16:
        raise BackboneError(
            "this GPU has no bfloat16 (Ampere and newer have); use 'auto' or 'fp32'"
        )
    if wanted != "auto":
        return wanted
    if on_gpu:
        return "bf16" if has_bf16 else "fp32"
    is_fast = has_amx or (has_avx512_bf16() and _is_amd())
    return "bf16" if is_fast else "fp32"


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of activations for a precision that `pick_precision` returned.

    With int8, everything but the frozen matrices is computed in the dtype of "auto".
    """
    return DTYPES[pick_precision("auto", device) if precision == "int8" else precision]


@cache
def _is_amd() -> bool:
    return "AuthenticAMD" in _cpu_info()


def cpu_model() -> str:
    """Return the maker's name of the processor, as far as the system tells it."""
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return ""


@cache
def multiplies_int8_exactly() -> bool:
    """Multiply extreme int8 matrices, and return True if the product is exact.

    Older CPUs add pairs of products in 16 bits, which saturate; oneDNN then returns wrong sums
    without a warning.
    """
    x = torch.full((32, 384), 127, dtype=torch.int8)
    x[::2, ::3] = -127
    return torch.equal(int8_matmul(x, x.t()).double(), x.double() @ x.double().t())


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the tensors of the next forward pass.

    By default, glibc returns each block of several MB to the system and gets zeroed pages for the
    next one, which costs a tenth of a forward pass on a CPU (measured). The memory kept is at most
    what concurrent passes needed. Call this before threads are started.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc
        for option, value in _MALLOC_OPTIONS:
            libc.mallopt(option, value)


def keep_compiled_products() -> None:
    """Make oneDNN cache the compiled matrix products of all batch sizes.

    Its default of 1,024 entries is too small for all sizes with two numbers of threads. An entry
    takes 0.5 ms to compile and a few kB. Call this before anything is computed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


def give_back_freed_memory() -> None:
    """Make glibc return all freed memory to the system, as after a start that reads many files."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
