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
    """Resolve "auto", "fp32" or "bf16": bfloat16 where the hardware multiplies it faster.

    Among CPUs those are the ones with AMX tiles. AVX-512's bfloat16 instructions alone reach half
    the speed of float32 (measured: DECISIONS.md), and CPUs without either a tenth. A fixed rule,
    not a timing, since a run of a seed must not change its precision.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
