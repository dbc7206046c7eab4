"""Where and in which precision to compute: what the machine has, or what the user insists on."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from functools import cache
from pathlib import Path

import torch

from deltas.errors import BackboneError
from deltas.kernels.linear import int8_matmul
from deltas.kernels.private_apis import has_amx_tiles, has_avx512_bf16

logger = logging.getLogger(__name__)

# Of glibc's malloc.h: take blocks up to 32 MB (its own maximum) from the heap, not as mappings;
# give back only what is free beyond 1 GiB; one heap for all threads.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MALLOC_OPTIONS = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30), (_M_ARENA_MAX, 1))

# What is computed in; for "int8", which multiplies only frozen matrices as whole numbers, ask
# `dtype_of`.
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
            "device 'cuda' was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'"
        )
    return torch.device(wanted)


def pick_precision(wanted: str, device: torch.device) -> str:
    """Resolve "auto", "fp32", "bf16" or "int8": bfloat16 where the hardware multiplies it faster.

    Among CPUs those are the ones with AMX tiles and AMD's with AVX-512's bfloat16 instructions.
    On a Xeon those instructions alone reach half the speed of float32, and CPUs without either a
    tenth (measured: DECISIONS.md). A fixed rule, not a timing, since a run of a seed must not
    change its precision. int8 is never picked, since it changes answers by more than rounding.

    Raises:
        BackboneError: int8 on another device than a CPU, or on one that does not multiply whole
            numbers exactly; bfloat16 on a GPU that has none.
    """
    if wanted == "int8" and device.type != "cpu":
        raise BackboneError(f"precision 'int8' runs on CPUs only, not on {device.type!r}")
    if wanted == "int8" and not multiplies_int8_exactly():
        raise BackboneError(
            "precision 'int8' needs a CPU that multiplies whole numbers exactly (AVX-512 VNNI, "
            "AVX-VNNI or AMX); this one cuts off large sums; use 'auto'"
        )
    has_tiles = device.type == "cpu" and has_amx_tiles()
    if wanted == "int8" and has_tiles:
        logger.warning("this CPU multiplies bfloat16 in tiles (AMX): 'bf16' is faster than 'int8'")
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
    is_fast = has_tiles or (has_avx512_bf16() and _is_amd())
    return "bf16" if is_fast else "fp32"


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What is computed in with a precision that `pick_precision` gave.

    In int8 that is what "auto" would compute in.
    """
    return DTYPES[pick_precision("auto", device) if precision == "int8" else precision]


@cache
def _is_amd() -> bool:
    """Whether the processor is one of AMD's, as Linux tells."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@cache
def multiplies_int8_exactly() -> bool:
    """Whether products of 8-bit integers are what they should be.

    Older CPUs add pairs of products in 16 bits, which overflow and are cut off; oneDNN uses that
    without a word.
    """
    x = torch.full((32, 384), 127, dtype=torch.int8)
    x[::2, ::3] = -127
    return torch.equal(int8_matmul(x, x.t()).double(), x.double() @ x.double().t())


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free, for the tensors of the next forward pass.

    By default glibc gives every block of several MB back to the system at once and gets fresh
    pages, zeroed one by one, for the next: measured, a tenth of a forward pass on a CPU. Call it
    before threads are started; what is kept is at most what the passes that run at a time needed.
    Does nothing elsewhere than on Linux with glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS:
            mallopt(option, value)


def keep_compiled_products() -> None:
    """Have oneDNN keep the products that it compiles, for every size of batch.

    It keeps 1,024 unless told otherwise, and the sizes, for two numbers of threads, are more. One
    takes half a millisecond to compile and some kB to keep. Call it before anything is computed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


def give_back_freed_memory() -> None:
    """Have the C library give back what was freed until now, holes between what is in use, too.

    For the end of a start that reads many files. Does nothing elsewhere than on Linux with glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
