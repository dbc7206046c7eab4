"""Lists the private APIs that the product uses, and wraps those that are single PyTorch operators.

An API is private if its name starts with an underscore, if it is reached through `torch.ops`, or if
its owner documents it for its own use only; any release may change it. A test
(`tests/meta/test_private_apis.py`) finds such names in the product and compares them with
`PRIVATE_APIS`. Outside this folder only `app.engine.cuda` (attention on GPUs) and
`training.data.glue` (readers of `datasets`) may use any.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PrivateApi(NamedTuple):
    """A private API in use.

    Attributes:
        name: dotted name.
        seen_in: release that the code was written for.
        probe: check that decides at start, or at first use, whether the API is used, and the
            alternative; or the test that fails when the API changes.
    """

    name: str
    seen_in: str
    probe: str


PRIVATE_APIS = (
    PrivateApi(
        "torch.ops.mkldnn._reorder_linear_weight",
        "torch 2.13",
        "`linear.can_prepack` multiplies a small matrix; otherwise weights stay plain",
    ),
    PrivateApi(
        "torch.ops.mkldnn._linear_pointwise",
        "torch 2.13",
        "`linear.can_prepack` multiplies a small matrix; otherwise weights stay plain",
    ),
    PrivateApi(
        "torch._int_mm",
        "torch 2.13",
        "`deltas.hardware.multiplies_int8_exactly` multiplies once; otherwise int8 is refused",
    ),
    PrivateApi(
        "torch._softmax_backward_data",
        "torch 2.13",
        "looked up at each call; otherwise `softmax_backward` uses its formula",
    ),
    PrivateApi(
        "torch.ops.aten.gelu_",
        "torch 2.13",
        "looked up at each call; otherwise GELU writes to new memory",
    ),
    PrivateApi(
        "torch.cpu._is_amx_tile_supported",
        "torch 2.13",
        "looked up at each call; otherwise the CPU counts as one without AMX",
    ),
    PrivateApi(
        "torch.cpu._is_avx512_bf16_supported",
        "torch 2.13",
        "looked up at each call; otherwise the CPU counts as one without AVX-512 bfloat16",
    ),
    PrivateApi(
        "GOMP_parallel",
        "libgomp of GCC 4.9 and later",
        "`runtime._loaded_openmp` looks for libgomp; otherwise kernels run in one thread",
    ),
    PrivateApi(
        "numba.core.cgutils",
        "numba 0.68",
        "no alternative; `tests/unit/deltas/kernels/test_runtime.py` runs a kernel",
    ),
)


def gelu_in_place(x: Tensor, approximate: str) -> Tensor:
    """Apply GELU to x and overwrite x, which touches less memory than `F.gelu`.

    Args:
        x: any shape, needed no longer.
        approximate: "none" or "tanh", as for `torch.nn.functional.gelu`.
    """
    try:
        activated: Tensor = torch.ops.aten.gelu_(x, approximate=approximate)
    except AttributeError:
        return torch.nn.functional.gelu(x, approximate=approximate)
    return activated


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of a softmax's input over the last dimension.

    Args:
        grad: gradient of the softmax's output, the shape of `weights`.
        weights: the softmax's output.
    """
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
