"""The epilogue: what PyTorch's operations give, whatever is asked for, at any size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.epilogue import Norm, Product, Quantised, Target, finish

EPS = 1e-12


def reference(
    product: Product,
    slots: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: str | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """The same, step by step, in float64."""
    x = product.values.double()
    if product.line_steps is not None and product.value_steps is not None:
        x = x * product.line_steps.double()[:, None] * product.value_steps.double()
    if bias is not None:
        x = x + bias.double()[slots]
    if residual is not None:
        x = x + residual.double()
    if gelu:
        x = F.gelu(x, approximate=gelu)
    if norm:
        x = F.layer_norm(x, (x.shape[1],), None, None, norm.eps)
        x = x * norm.scale.double()[slots] + norm.shift.double()[slots]
    return x


@settings(deadline=None, max_examples=120)
@given(
    lines=st.integers(1, 70),
    size=st.sampled_from([1, 7, 36, 48, 131]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int32]),
    wanted=st.fixed_dictionaries(
        {
            "bias": st.booleans(),
            "residual": st.sampled_from([None, torch.float32, torch.bfloat16]),
            "gelu": st.sampled_from([None, "none", "tanh"]),
            "norm": st.booleans(),
        }
    ),
    seed=st.integers(0, 1000),
)
def test_equals_pytorch(lines: int, size: int, dtype: torch.dtype, wanted: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    slots = torch.randint(0, 3, (lines,), generator=generator)
    given_: dict[str, Any] = {"gelu": wanted["gelu"]}
    product = Product((normal(lines, size) * 3).to(dtype))
    if dtype == torch.int32:
        whole = (normal(lines, size) * 1000).to(dtype)
        product = Product(whole, normal(lines).abs() / 300, normal(size).abs())
    if wanted["bias"]:
        given_["bias"] = normal(3, size)
    if wanted["residual"]:
        given_["residual"] = normal(lines, size).to(wanted["residual"])
    if wanted["norm"] and size > 1:
        given_["norm"] = Norm(normal(3, size), normal(3, size), EPS)
    expected = reference(product, slots, **given_)
    out, rough = torch.empty(lines, size), torch.empty(lines, size, dtype=torch.bfloat16)
    quantised = Quantised(torch.empty(lines, size, dtype=torch.int8), torch.empty(lines))
    finish(product, slots, Target(out, quantised), **given_)
    finish(product, slots, Target(rough), **given_)
    size_of = expected.abs().amax(1, keepdim=True).float() + 1e-6
    assert ((out - expected).abs() <= 1e-5 * size_of + 5e-6).all()
    assert torch.equal(rough, out.bfloat16())
    away = (quantised.values * quantised.steps[:, None] - out).abs()
    assert (away <= 0.501 * quantised.steps[:, None]).all()
    assert (quantised.values.abs().amax(1) == 127)[out.abs().amax(1) > 1e-20].all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_at_any_size_of_its_argument(approximate: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 60_001), torch.tensor([0.0, -1e-30, 1e-30, 1e30])])[None]
    out = torch.empty_like(x)
    finish(Product(x), torch.zeros(1, dtype=torch.int64), Target(out), gelu=approximate)
    expected = F.gelu(x.double(), approximate=approximate)
    assert ((out - expected).abs() <= 1.5e-6 + 5e-7 * x.abs()).all()


def test_a_line_does_not_depend_on_the_lines_beside_it() -> None:
    """Bit for bit, so that in int8 no answer depends on its company."""
    product = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    norm = Norm(torch.randn(2, 48), torch.randn(2, 48), EPS)
    slots = torch.arange(64) % 2
    together = Quantised(torch.empty(64, 48, dtype=torch.int8), torch.empty(64))
    finish(Product(product), slots, Target(quantised=together), norm=norm)
    for line in range(64):
        alone = Quantised(torch.empty(1, 48, dtype=torch.int8), torch.empty(1))
        one = slice(line, line + 1)
        finish(Product(product[one]), slots[one], Target(quantised=alone), norm=norm)
        assert torch.equal(alone.values[0], together.values[line])
        assert torch.equal(alone.steps[0], together.steps[line])


def test_a_line_of_zeros_stays_zero() -> None:
    quantised = Quantised(torch.ones(1, 8, dtype=torch.int8), torch.empty(1))
    slots = torch.zeros(1, dtype=torch.int64)
    finish(Product(torch.zeros(1, 8)), slots, Target(quantised=quantised))
    assert quantised.values.eq(0).all()
    assert math.isfinite(quantised.steps.item())


def test_nothing_but_contiguous_memory() -> None:
    product = Product(torch.zeros(8, 4).t())
    slots, target = torch.zeros(4, dtype=torch.int64), Target(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"contiguous memory, got strides \(1, 4\)"):
        finish(product, slots, target)
