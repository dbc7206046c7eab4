"""Lists the private APIs that the product uses, and wraps those that are single PyTorch operators.

An API is private if its name starts with an underscore, if it is reached through `torch.ops`, or if
its owner documents it for its own use only; any release may change it. A test
(`tests/meta/test_private_apis.py`) finds such names in the product and compares them with
`PRIVATE_APIS`. Outside this folder only `app.engine.cuda` (attention on GPUs) may use any.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PrivateApi(NamedTuple):
    """A private API, the release that the code was written for, and what guards against a change.

    The guard is a check at start or at first use, with the alternative if it fails; or a test.
    """

    name: str
    seen_in: str
    guard: str


_TORCH = "torch 2.13"
_PREPACKING = "`linear.can_prepack` multiplies a small matrix; otherwise weights stay plain"
_INT8 = "`deltas.hardware.multiplies_int8_exactly`; otherwise int8 is refused"
_OPENMP = "`runtime._loaded_openmp` looks for libgomp; otherwise kernels run in one thread"
PRIVATE_APIS = (
    PrivateApi("torch.ops.mkldnn._reorder_linear_weight", _TORCH, _PREPACKING),
    PrivateApi("torch.ops.mkldnn._linear_pointwise", _TORCH, _PREPACKING),
    PrivateApi("torch._int_mm", _TORCH, _INT8),
    PrivateApi("torch._softmax_backward_data", _TORCH, "otherwise the formula"),
    PrivateApi("torch.ops.aten.gelu_", _TORCH, "otherwise GELU writes to new memory"),
    PrivateApi("torch.cpu._is_amx_tile_supported", _TORCH, "otherwise it counts as absent"),
    PrivateApi("torch.cpu._is_avx512_bf16_supported", _TORCH, "otherwise it counts as absent"),
    PrivateApi("GOMP_parallel", "libgomp of GCC 4.9 and later", _OPENMP),
    PrivateApi("numba.core.cgutils", "numba 0.68", "`tests/unit/deltas/kernels/test_runtime.py`"),
)


def gelu_in_place(x: Tensor, approximate: str) -> Tensor:
    """Apply `torch.nn.functional.gelu` to x and overwrite x, which touches less memory."""
    try:
        activated: Tensor = torch.ops.aten.gelu_(x, approximate=approximate)
    except AttributeError:
        return torch.nn.functional.gelu(x, approximate=approximate)
    return activated


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of a softmax's input from that of its output, the weights."""
    try:
        return torch._softmax_backward_data(grad, weights, -1, weights.dtype)
    except AttributeError:
        return weights * (grad - (grad * weights).sum(-1, keepdim=True))


def has_amx_tiles() -> bool:
    """Return whether the CPU has AMX tiles, as far as PyTorch knows."""
    try:
        return bool(torch.cpu._is_amx_tile_supported())
    except AttributeError:
        return False


def has_avx512_bf16() -> bool:
    """Return whether the CPU has the bfloat16 instructions of AVX-512, as far as PyTorch knows."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported())
    except AttributeError:
        return False
