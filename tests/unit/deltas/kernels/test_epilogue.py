"""The epilogue: what PyTorch's operations give, whatever is asked for, at any size."""

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
    """The same, step by step, in float64."""
    x = product.values.double()
    if product.factors:
        lines, matrix = product.factors
        x = x * lines.scales.double()[:, None] * matrix.scales.double()
        x = x + lines.offsets.double()[:, None] * matrix.row_sums.double()
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
    """The correction of each row, by dense matrices."""
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
    """Updates of four slots: none, one without values, one with one, one of every value."""
    updates: list[Update | None] = [None]
    for count in (0, 1, size * width):
        indices = torch.randperm(size * width, generator=generator)[:count].sort().values
        values = torch.randn(count, generator=generator)
        updates.append(Update((indices // width).int(), (indices % width).int(), values))
    return updates


@law(200)
@given(
    lines=st.integers(1, 70),
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
def test_equals_pytorch(lines: int, size: int, dtype: torch.dtype, wanted: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def vectors() -> PerRowVector:
        return PerRowVector(normal(3, size), torch.randint(0, 3, (lines,), generator=generator))

    given_: dict[str, Any] = {"gelu": wanted["gelu"]}
    updates: list[Update | None] = []
    product = Product((normal(lines, size) * 3).to(dtype))
    if dtype == torch.int32:
        whole = (normal(lines, size) * 1000).to(dtype)
        nothing = torch.empty(0, dtype=torch.int8)
        factors = (
            Int8Rows(nothing, normal(lines).abs() / 300, normal(lines)),
            Int8Matrix(nothing, normal(size).abs(), normal(size)),
        )
        product = Product(whole, factors)
    if wanted["corrections"]:
        x = normal(lines, 5).to(wanted["corrections"])
        updates = some_updates(size, 5, generator)
        update_of = torch.randint(-1, 4, (lines,), generator=generator)
        pointers = [sparse_update(*update) if update else NO_UPDATE for update in updates]
        product = replace(product, correction=SparseCorrection(x, pointers, update_of))
    if wanted["bias"]:
        given_["bias"] = vectors()
    if wanted["residual"]:
        given_["residual"] = normal(lines, size).to(wanted["residual"])
    if wanted["norm"] and size > 1:
        given_["norm"] = LayerNormParams(vectors(), vectors(), EPS)
    expected = reference(product, updates=updates, **given_)
    out, rough = torch.empty(lines, size), torch.empty(lines, size, dtype=torch.bfloat16)
    quantised = Int8Rows.empty(*out.shape)
    apply_epilogue(product, EpilogueOutput(out, quantised), **given_)
    apply_epilogue(product, EpilogueOutput(rough), **given_)
    size_of = expected.abs().amax(1, keepdim=True).float() + 1e-6
    error = (out - expected).abs()
    if "norm" in given_:  # divides what was wrong before by the deviation
        before = reference(product, updates=updates, **{**given_, "norm": None})
        error *= before.std(1, keepdim=True, correction=0).clamp(max=1)
    assert (error <= 1e-5 * size_of + 5e-6).all()
    assert torch.equal(rough, out.bfloat16())
    steps, offsets = quantised.scales[:, None], quantised.offsets[:, None]
    what = hadamard(out - offsets)
    rounding = 1e-6 * out.abs().amax(1, keepdim=True)  # of the sums
    middle = (out.amax(1, keepdim=True) + out.amin(1, keepdim=True)) / 2
    expected = middle if size % 64 else out.mean(1, keepdim=True)
    assert ((expected - offsets).abs() <= rounding).all()
    assert ((quantised.values * steps - what).abs() <= 0.501 * steps + rounding).all()
    # All steps are used.
    wide = what.abs().amax(1) > 1e-5 * out.abs().amax(1) + 1e-20
    assert (quantised.values.abs().amax(1) == 127)[wide].all()
    if size % 64:  # all between a line's extremes
        assert (quantised.values.amax(1) == 127)[wide].all()
        assert (quantised.values.amin(1) == -127)[wide].all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_at_any_size_of_its_argument(approximate: str) -> None:
    edges = torch.tensor([0.0, -1e-30, 1e-30, -1e4, -1e30, 1e30])
    x = torch.cat([torch.linspace(-30, 30, 60_001), edges])[None]
    out = torch.empty_like(x)
    apply_epilogue(Product(x), EpilogueOutput(out), gelu=approximate)
    expected = F.gelu(x.double(), approximate=approximate)
    assert ((out - expected).abs() <= 1.5e-6 + 5e-7 * x.clamp(min=0)).all()


@pytest.mark.parametrize("size", [48, 64])
def test_a_line_does_not_depend_on_the_lines_beside_it(size: int) -> None:
    """Bit for bit, so that in int8 no product depends on its company."""
    product = torch.randn(64, size, generator=torch.Generator().manual_seed(1))
    lines = torch.arange(64) % 2
    tables = torch.randn(2, 2, size, generator=torch.Generator().manual_seed(2))

    def norm(lines: Tensor) -> LayerNormParams:
        return LayerNormParams(PerRowVector(tables[0], lines), PerRowVector(tables[1], lines), EPS)

    together = Int8Rows.empty(*product.shape)
    apply_epilogue(Product(product), EpilogueOutput(int8=together), norm=norm(lines))
    for line in range(64):
        one = slice(line, line + 1)
        alone = Int8Rows.empty(1, size)
        apply_epilogue(Product(product[one]), EpilogueOutput(int8=alone), norm=norm(lines[one]))
        assert torch.equal(alone.values[0], together.values[line])
        assert torch.equal(alone.scales[0], together.scales[line])
        assert torch.equal(alone.offsets[0], together.offsets[line])


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_line_of_equal_values_stays_what_it_is(value: float) -> None:
    x = torch.full((1, 8), value)
    quantised = Int8Rows.empty(*x.shape)
    apply_epilogue(Product(x), EpilogueOutput(int8=quantised))
    assert quantised.values.eq(0).all()
    assert quantised.offsets.item() == value
    assert math.isfinite(quantised.scales.item())


@pytest.mark.parametrize("size", [48, 64, 384])
def test_a_product_of_whole_numbers_is_that_of_what_they_stand_for(size: int) -> None:
    """The lines' offsets too, which the matrix's sums bring in."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, size, generator=generator) + 4
    weight = torch.randn(36, size, generator=generator)
    lines, matrix = Int8Rows.empty(*x.shape), Int8Matrix.quantise(weight)
    apply_epilogue(Product(x), EpilogueOutput(int8=lines))
    out = torch.empty(20, 36)
    product = Product(torch._int_mm(lines.values, matrix.values.t()), (lines, matrix))
    apply_epilogue(product, EpilogueOutput(out))
    numbers = (lines.values * lines.scales[:, None]) @ (matrix.values * matrix.scales[:, None]).t()
    expected = numbers + lines.offsets[:, None] * weight.sum(1)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(out, x @ weight.t(), atol=0.06 * size**0.5, rtol=0)


def test_mixing_is_a_hadamard_matrix_and_its_own_inverse() -> None:
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    matrix = torch.ones(1, 1)
    for _ in range(6):
        matrix = torch.kron(matrix, pair)
    assert torch.equal(hadamard(torch.eye(64)), matrix / 8)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    assert torch.equal(hadamard(x[:, :100]), x[:, :100])


def test_a_few_large_channels_do_not_coarsen_the_others() -> None:
    """As encoders have them: rounding each line as it is would be twice as far off."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(100, 384, generator=generator)
    x[:, [30, 200]] *= 20
    weight = torch.randn(50, 384, generator=generator) * 0.05
    weight[:, [30, 200]] *= 0.05
    lines, matrix = Int8Rows.empty(*x.shape), Int8Matrix.quantise(weight)
    apply_epilogue(Product(x), EpilogueOutput(int8=lines))
    out = torch.empty(100, 50)
    apply_epilogue(
        Product(torch._int_mm(lines.values, matrix.values.t()), (lines, matrix)),
        EpilogueOutput(out),
    )
    step = (x.amax(1) - x.amin(1)) / 254
    plain = step[:, None] * torch.round(x / step[:, None])
    error, plain_error = ((y - x @ weight.t()).square().mean() for y in (out, plain @ weight.t()))
    assert error < plain_error / 4


def test_nothing_but_contiguous_memory() -> None:
    product = Product(torch.zeros(8, 4).t())
    target = EpilogueOutput(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"contiguous memory, got strides \(1, 4\)"):
        apply_epilogue(product, target)


# Five lines of 8 values, products of 6 each, with all there is.
TENSORS = {
    "product": torch.ones(5, 8, dtype=torch.int32),
    "steps": torch.ones(5),
    "offsets": torch.ones(5),
    "matrix steps": torch.ones(8),
    "matrix sums": torch.ones(8),
    "x": torch.ones(5, 6),
    "of_line": torch.ones(5, dtype=torch.int64),
    "rows": torch.arange(2, dtype=torch.int32),
    "columns": torch.arange(2, dtype=torch.int32),
    "differences": torch.ones(2),
    "bias": torch.ones(1, 8),
    "bias lines": torch.zeros(5, dtype=torch.int64),
    "residual": torch.ones(5, 8),
    "scale": torch.ones(1, 8),
    "scale lines": torch.zeros(5, dtype=torch.int64),
    "shift": torch.ones(1, 8),
    "shift lines": torch.zeros(5, dtype=torch.int64),
    "out": torch.ones(5, 8),
    "whole": torch.ones(5, 8, dtype=torch.int8),
    "whole steps": torch.ones(5),
    "whole offsets": torch.ones(5),
}


def finish_all(tensors: dict[str, Tensor]) -> None:
    """Finish a product with everything that there can be."""
    t = tensors
    lines = Int8Rows(t["whole"], t["steps"], t["offsets"])
    matrix = Int8Matrix(t["whole"], t["matrix steps"], t["matrix sums"])
    updates = [NO_UPDATE, sparse_update(t["rows"], t["columns"], t["differences"])]
    scale, shift = (PerRowVector(t[name], t[f"{name} lines"]) for name in ("scale", "shift"))
    apply_epilogue(
        Product(t["product"], (lines, matrix), SparseCorrection(t["x"], updates, t["of_line"])),
        EpilogueOutput(t["out"], Int8Rows(t["whole"], t["whole steps"], t["whole offsets"])),
        bias=PerRowVector(t["bias"], t["bias lines"]),
        residual=t["residual"],
        norm=LayerNormParams(scale, shift, EPS),
    )


def test_all_there_is_at_once() -> None:
    finish_all(TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_no_tensor_of_another_dtype_or_shape(name: str) -> None:
    """The kernel reads and writes by address: nothing else would notice."""
    right = TENSORS[name]
    shorter = right[:4] if name == "x" else right[..., :-1].clone()
    for wrong in (right.double(), shorter):
        with pytest.raises(ValueError, match=r"^needs .*, got "):
            finish_all({**TENSORS, name: wrong})


def test_whole_numbers_are_no_lines_to_write() -> None:
    """They are read as products only."""
    for name in ("out", "residual", "x"):
        with pytest.raises(ValueError, match=r"^needs .*, got torch.int32"):
            finish_all({**TENSORS, name: TENSORS[name].int()})


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", ["bias", "gelu", "norm", "whole"])
def test_what_is_not_finite_stays_so(value: float, step: str, size: int) -> None:
    """A delta whose values overflow is found by its answers, in every precision."""
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
        whole, matrix = Int8Rows.empty(*x.shape), Int8Matrix.quantise(torch.eye(size))
        apply_epilogue(Product(x), EpilogueOutput(int8=whole))
        apply_epilogue(Product(whole.values.int(), (whole, matrix)), EpilogueOutput(out))
    assert not out.isfinite().all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001, 0x7FC00000, -0x400000])
def test_no_nan_is_rounded_to_a_number(bits: int) -> None:
    """Rounding adds to the bits: those of some would carry into a zero's, or infinity's."""
    x = torch.full((1, 8), bits, dtype=torch.int32).view(torch.float32)
    out = torch.zeros(1, 8, dtype=torch.bfloat16)
    apply_epilogue(Product(x), EpilogueOutput(out))
    assert out.isnan().all()
