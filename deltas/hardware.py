"""Where and in which precision to compute: what the machine has, or what the user insists on."""

from __future__ import annotations

import torch

from deltas.errors import BackboneError

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
    """Resolve "auto", "fp32" or "bf16": bfloat16 where the hardware multiplies it natively.

    On a CPU without such instructions bfloat16 is several times slower than float32, not faster.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
