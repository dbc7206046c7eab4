"""The epilogue computes what PyTorch's operations compute, in every combination and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltas.kernels.epilogue import (
    NO_UPDATE,
    EpilogueOutput,
    LayerNormParams,
    PerRowVector,
    Product,
    SparseCorrection,
    apply_epilogue,
    sparse_update,
)
from deltas.kernels.int8 import Int8Matrix, Int8Rows, hadamard
from tests.laws import law

EPS = 1e-12


def reference(
    product: Product,
    *,
    bias: PerRowVector | None = None,
    residual: Tensor | None = None,
    gelu: str | None = None,
    norm: LayerNormParams | None = None,
    updates: Sequence[Update | None] = (),
) -> Tensor:
    """Finish a product step by step in float64."""
    x = product.values.double()
    if product.factors:
        rows, matrix = product.factors
        x = x * rows.scales.double()[:, None] * matrix.scales.double()
        x = x + rows.offsets.double()[:, None] * matrix.row_sums.double()
    if product.correction:
        x = x + lacking(product.correction, updates, x.shape[1])
    if bias is not None:
        x = x + bias.table.double()[bias.row_of]
    if residual is not None:
        x = x + residual.double()
    if gelu:
        x = F.gelu(x, approximate=gelu)
    if norm:
        x = F.layer_norm(x, (x.shape[1],), None, None, norm.eps)
        scale, shift = (v.table.double()[v.row_of] for v in (norm.scale, norm.shift))
        x = x * scale + shift
    return x


class Update(NamedTuple):
    """A sparse update of a shared matrix."""

    rows: Tensor
    columns: Tensor
    values: Tensor


def lacking(correction: SparseCorrection, updates: Sequence[Update | None], size: int) -> Tensor:
    """Compute the correction of each row with dense matrices."""
    added = torch.zeros(len(correction.x), size, dtype=torch.float64)
    for row, (number, x) in enumerate(
        zip(correction.update_of.tolist(), correction.x.double(), strict=True)
    ):
        update = updates[number] if number >= 0 else None
        if update is not None:
            matrix = torch.zeros(size, len(x), dtype=torch.float64)
            matrix[update.rows.long(), update.columns.long()] = update.values.double()
            added[row] = matrix @ x
    return added


def some_updates(size: int, width: int, generator: torch.Generator) -> list[Update | None]:
    """Draw updates: none, one without values, one with one value, one of every value."""
    updates: list[Update | None] = [None]
    for count in (0, 1, size * width):
        indices = torch.randperm(size * width, generator=generator)[:count].sort().values
        values = torch.randn(count, generator=generator)
        updates.append(Update((indices // width).int(), (indices % width).int(), values))
    return updates


@law(200)
@given(
    count=st.integers(1, 70),
    size=st.sampled_from([1, 7, 36, 48, 64, 131, 192]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int32]),
    wanted=st.fixed_dictionaries(
        {
            "corrections": st.sampled_from([None, torch.float32, torch.bfloat16]),
            "bias": st.booleans(),
            "residual": st.sampled_from([None, torch.float32, torch.bfloat16]),
            "gelu": st.sampled_from([None, "none", "tanh"]),
            "norm": st.booleans(),
        }
    ),
    seed=st.integers(0, 1000),
)
def test_equals_pytorch(count: int, size: int, dtype: torch.dtype, wanted: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def vectors() -> PerRowVector:
        return PerRowVector(normal(3, size), torch.randint(0, 3, (count,), generator=generator))

    steps: dict[str, Any] = {"gelu": wanted["gelu"]}
    updates: list[Update | None] = []
    product = Product((normal(count, size) * 3).to(dtype))
    if dtype == torch.int32:
        integers = (normal(count, size) * 1000).to(dtype)
        unused = torch.empty(0, dtype=torch.int8)
        factors = (
            Int8Rows(unused, normal(count).abs() / 300, normal(count)),
            Int8Matrix(unused, normal(size).abs(), normal(size)),
        )
        product = Product(integers, factors)
    if wanted["corrections"]:
        x = normal(count, 5).to(wanted["corrections"])
        updates = some_updates(size, 5, generator)
        update_of = torch.randint(-1, 4, (count,), generator=generator)
        pointers = [sparse_update(*update) if update else NO_UPDATE for update in updates]
        product = replace(product, correction=SparseCorrection(x, pointers, update_of))
    if wanted["bias"]:
        steps["bias"] = vectors()
    if wanted["residual"]:
        steps["residual"] = normal(count, size).to(wanted["residual"])
    if wanted["norm"] and size > 1:
        steps["norm"] = LayerNormParams(vectors(), vectors(), EPS)
    expected = reference(product, updates=updates, **steps)
    out, bf16 = torch.empty(count, size), torch.empty(count, size, dtype=torch.bfloat16)
    int8_rows = Int8Rows.empty(*out.shape)
    apply_epilogue(product, EpilogueOutput(out, int8_rows), **steps)
    apply_epilogue(product, EpilogueOutput(bf16), **steps)
    size_of = expected.abs().amax(1, keepdim=True).float() + 1e-6
    error = (out - expected).abs()
    if "norm" in steps:  # divides earlier errors by the deviation
        before = reference(product, updates=updates, **{**steps, "norm": None})
        error *= before.std(1, keepdim=True, correction=0).clamp(max=1)
    assert (error <= 1e-5 * size_of + 5e-6).all()
    assert torch.equal(bf16, out.bfloat16())
    scales, offsets = int8_rows.scales[:, None], int8_rows.offsets[:, None]
    exact = hadamard(out - offsets)
    rounding = 1e-6 * out.abs().amax(1, keepdim=True)  # of the sums
    middle = (out.amax(1, keepdim=True) + out.amin(1, keepdim=True)) / 2
    expected = middle if size % 64 else out.mean(1, keepdim=True)
    assert ((expected - offsets).abs() <= rounding).all()
    assert ((int8_rows.values * scales - exact).abs() <= 0.501 * scales + rounding).all()
    # Every step is used.
    wide = exact.abs().amax(1) > 1e-5 * out.abs().amax(1) + 1e-20
    assert (int8_rows.values.abs().amax(1) == 127)[wide].all()
    if size % 64:  # not transformed: from extreme to extreme
        assert (int8_rows.values.amax(1) == 127)[wide].all()
        assert (int8_rows.values.amin(1) == -127)[wide].all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_right_for_any_argument(approximate: str) -> None:
    edges = torch.tensor([0.0, -1e-30, 1e-30, -1e4, -1e30, 1e30])
    x = torch.cat([torch.linspace(-30, 30, 60_001), edges])[None]
    out = torch.empty_like(x)
    apply_epilogue(Product(x), EpilogueOutput(out), gelu=approximate)
    expected = F.gelu(x.double(), approximate=approximate)
    assert ((out - expected).abs() <= 1.5e-6 + 5e-7 * x.clamp(min=0)).all()


def test_memory_must_be_contiguous() -> None:
    product = Product(torch.zeros(8, 4).t())
    target = EpilogueOutput(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"contiguous memory, got strides \(1, 4\)"):
        apply_epilogue(product, target)


# Five rows of 8 values, products of 6 each, with every step.
TENSORS = {
    "product": torch.ones(5, 8, dtype=torch.int32),
    "scales": torch.ones(5),
    "offsets": torch.ones(5),
    "matrix scales": torch.ones(8),
    "matrix sums": torch.ones(8),
    "x": torch.ones(5, 6),
    "update_of": torch.ones(5, dtype=torch.int64),
    "rows": torch.arange(2, dtype=torch.int32),
    "columns": torch.arange(2, dtype=torch.int32),
    "differences": torch.ones(2),
    "bias": torch.ones(1, 8),
    "bias row_of": torch.zeros(5, dtype=torch.int64),
    "residual": torch.ones(5, 8),
    "scale": torch.ones(1, 8),
    "scale row_of": torch.zeros(5, dtype=torch.int64),
    "shift": torch.ones(1, 8),
    "shift row_of": torch.zeros(5, dtype=torch.int64),
    "out": torch.ones(5, 8),
    "int8": torch.ones(5, 8, dtype=torch.int8),
    "int8 scales": torch.ones(5),
    "int8 offsets": torch.ones(5),
}


def apply_all(tensors: dict[str, Tensor]) -> None:
    """Finish a product with every step."""
    t = tensors
    rows = Int8Rows(t["int8"], t["scales"], t["offsets"])
    matrix = Int8Matrix(t["int8"], t["matrix scales"], t["matrix sums"])
    updates = [NO_UPDATE, sparse_update(t["rows"], t["columns"], t["differences"])]
    scale, shift = (PerRowVector(t[name], t[f"{name} row_of"]) for name in ("scale", "shift"))
    apply_epilogue(
        Product(t["product"], (rows, matrix), SparseCorrection(t["x"], updates, t["update_of"])),
        EpilogueOutput(t["out"], Int8Rows(t["int8"], t["int8 scales"], t["int8 offsets"])),
        bias=PerRowVector(t["bias"], t["bias row_of"]),
        residual=t["residual"],
        norm=LayerNormParams(scale, shift, EPS),
    )


def test_every_step_at_once() -> None:
    apply_all(TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_another_dtype_or_shape_are_refused(name: str) -> None:
    """The kernel reads and writes by address and would not notice."""
    right = TENSORS[name]
    shorter = right[:4] if name == "x" else right[..., :-1].clone()
    for wrong in (right.double(), shorter):
        with pytest.raises(ValueError, match=r"^needs .*, got "):
            apply_all({**TENSORS, name: wrong})


def test_int32_is_for_products_only() -> None:
    for name in ("out", "residual", "x"):
        with pytest.raises(ValueError, match=r"^needs .*, got torch.int32"):
            apply_all({**TENSORS, name: TENSORS[name].int()})


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", ["bias", "gelu", "norm", "int8"])
def test_values_that_are_not_finite_stay_so(value: float, step: str, size: int) -> None:
    """A broken delta is detected by its answers, in every precision."""
    x = torch.zeros(1, size)
    x[0, 5] = value
    first = torch.zeros(1, dtype=torch.int64)
    vectors = PerRowVector(torch.ones(1, size), first)
    out = torch.empty_like(x)
    if step == "bias":
        apply_epilogue(Product(x), EpilogueOutput(out), bias=vectors)
    elif step == "gelu":
        apply_epilogue(Product(x.abs() if value < 0 else x), EpilogueOutput(out), gelu="none")
    elif step == "norm":
        apply_epilogue(Product(x), EpilogueOutput(out), norm=LayerNormParams(vectors, vectors, EPS))
    else:
        rows, matrix = Int8Rows.empty(*x.shape), Int8Matrix.quantise(torch.eye(size))
        apply_epilogue(Product(x), EpilogueOutput(int8=rows))
        apply_epilogue(Product(rows.values.int(), (rows, matrix)), EpilogueOutput(out))
    assert not out.isfinite().all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001, 0x7FC00000, -0x400000])
def test_no_nan_is_rounded_to_a_number(bits: int) -> None:
    """Rounding adds to the bits, which would carry some kinds of NaN into a zero or infinity."""
    x = torch.full((1, 8), bits, dtype=torch.int32).view(torch.float32)
    out = torch.zeros(1, 8, dtype=torch.bfloat16)
    apply_epilogue(Product(x), EpilogueOutput(out))
    assert out.isnan().all()
