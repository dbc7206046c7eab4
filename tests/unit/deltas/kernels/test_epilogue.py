"""The epilogue: what PyTorch's operations give, whatever is asked for, at any size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.engine.sparse import SparseSlot
from deltas.kernels.epilogue import Corrections, Norm, PerLine, Product, Target, finish
from deltas.kernels.int8 import Quantised, QuantisedMatrix, mixed

EPS = 1e-12


def reference(
    product: Product,
    *,
    bias: PerLine | None = None,
    residual: Tensor | None = None,
    gelu: str | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """The same, step by step, in float64."""
    x = product.values.double()
    if product.factors:
        lines, matrix = product.factors
        x = x * lines.steps.double()[:, None] * matrix.steps.double()
        x = x + lines.offsets.double()[:, None] * matrix.sums.double()
    if product.corrections:
        x = x + lacking(product.corrections, x.shape[1])
    if bias is not None:
        x = x + bias.table.double()[bias.lines]
    if residual is not None:
        x = x + residual.double()
    if gelu:
        x = F.gelu(x, approximate=gelu)
    if norm:
        x = F.layer_norm(x, (x.shape[1],), None, None, norm.eps)
        scale, shift = (v.table.double()[v.lines] for v in (norm.scale, norm.shift))
        x = x * scale + shift
    return x


def lacking(corrections: Corrections, size: int) -> Tensor:
    """Corrections, line by line, by whole matrices of differences."""
    added = torch.zeros(len(corrections.x), size, dtype=torch.float64)
    for line, (number, x) in enumerate(
        zip(corrections.of_line.tolist(), corrections.x.double(), strict=True)
    ):
        own = corrections.own[number] if number >= 0 else None
        if own is not None:
            matrix = torch.zeros(size, len(x), dtype=torch.float64)
            matrix[own.rows.long(), own.columns.long()] = own.differences.double()
            added[line] = matrix @ x
    return added


def some_corrections(lines: int, size: int, dtype: torch.dtype, seed: int) -> Corrections:
    """Of four slots: two with values, one without, one that has nothing there."""
    generator = torch.Generator().manual_seed(seed)
    width = 5
    own: list[SparseSlot | None] = [None]
    for count in (0, 1, size * width):
        places = torch.randperm(size * width, generator=generator)[:count].sort().values
        differences = torch.randn(count, generator=generator)
        own.append(SparseSlot((places // width).int(), (places % width).int(), differences, 5))
    x = torch.randn(lines, width, generator=generator).to(dtype)
    return Corrections(x, own, torch.randint(-1, 4, (lines,), generator=generator))


@settings(deadline=None, max_examples=200)
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

    def vectors() -> PerLine:
        return PerLine(normal(3, size), torch.randint(0, 3, (lines,), generator=generator))

    given_: dict[str, Any] = {"gelu": wanted["gelu"]}
    product = Product((normal(lines, size) * 3).to(dtype))
    if dtype == torch.int32:
        whole = (normal(lines, size) * 1000).to(dtype)
        nothing = torch.empty(0, dtype=torch.int8)
        factors = (
            Quantised(nothing, normal(lines).abs() / 300, normal(lines)),
            QuantisedMatrix(nothing, normal(size).abs(), normal(size)),
        )
        product = Product(whole, factors)
    if wanted["corrections"]:
        corrections = some_corrections(lines, size, wanted["corrections"], seed)
        product = replace(product, corrections=corrections)
    if wanted["bias"]:
        given_["bias"] = vectors()
    if wanted["residual"]:
        given_["residual"] = normal(lines, size).to(wanted["residual"])
    if wanted["norm"] and size > 1:
        given_["norm"] = Norm(vectors(), vectors(), EPS)
    expected = reference(product, **given_)
    out, rough = torch.empty(lines, size), torch.empty(lines, size, dtype=torch.bfloat16)
    quantised = Quantised.room_for(*out.shape)
    finish(product, Target(out, quantised), **given_)
    finish(product, Target(rough), **given_)
    size_of = expected.abs().amax(1, keepdim=True).float() + 1e-6
    error = (out - expected).abs()
    if "norm" in given_:  # divides what was wrong before by the deviation
        before = reference(product, **{**given_, "norm": None})
        error *= before.std(1, keepdim=True, correction=0).clamp(max=1)
    assert (error <= 1e-5 * size_of + 5e-6).all()
    assert torch.equal(rough, out.bfloat16())
    steps, offsets = quantised.steps[:, None], quantised.offsets[:, None]
    what = mixed(out - offsets)
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
    finish(Product(x), Target(out), gelu=approximate)
    expected = F.gelu(x.double(), approximate=approximate)
    assert ((out - expected).abs() <= 1.5e-6 + 5e-7 * x.clamp(min=0)).all()


@pytest.mark.parametrize("size", [48, 64])
def test_a_line_does_not_depend_on_the_lines_beside_it(size: int) -> None:
    """Bit for bit, so that in int8 no product depends on its company."""
    product = torch.randn(64, size, generator=torch.Generator().manual_seed(1))
    lines = torch.arange(64) % 2
    tables = torch.randn(2, 2, size, generator=torch.Generator().manual_seed(2))

    def norm(lines: Tensor) -> Norm:
        return Norm(PerLine(tables[0], lines), PerLine(tables[1], lines), EPS)

    together = Quantised.room_for(*product.shape)
    finish(Product(product), Target(quantised=together), norm=norm(lines))
    for line in range(64):
        one = slice(line, line + 1)
        alone = Quantised.room_for(1, size)
        finish(Product(product[one]), Target(quantised=alone), norm=norm(lines[one]))
        assert torch.equal(alone.values[0], together.values[line])
        assert torch.equal(alone.steps[0], together.steps[line])
        assert torch.equal(alone.offsets[0], together.offsets[line])


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_line_of_equal_values_stays_what_it_is(value: float) -> None:
    x = torch.full((1, 8), value)
    quantised = Quantised.room_for(*x.shape)
    finish(Product(x), Target(quantised=quantised))
    assert quantised.values.eq(0).all()
    assert quantised.offsets.item() == value
    assert math.isfinite(quantised.steps.item())


@pytest.mark.parametrize("size", [48, 64, 384])
def test_a_product_of_whole_numbers_is_that_of_what_they_stand_for(size: int) -> None:
    """The lines' offsets too, which the matrix's sums bring in."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, size, generator=generator) + 4
    weight = torch.randn(36, size, generator=generator)
    lines, matrix = Quantised.room_for(*x.shape), QuantisedMatrix.of(weight)
    finish(Product(x), Target(quantised=lines))
    out = torch.empty(20, 36)
    product = Product(torch._int_mm(lines.values, matrix.values.t()), (lines, matrix))
    finish(product, Target(out))
    numbers = (lines.values * lines.steps[:, None]) @ (matrix.values * matrix.steps[:, None]).t()
    expected = numbers + lines.offsets[:, None] * weight.sum(1)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(out, x @ weight.t(), atol=0.06 * size**0.5, rtol=0)


def test_mixing_is_a_hadamard_matrix_and_its_own_inverse() -> None:
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    hadamard = torch.ones(1, 1)
    for _ in range(6):
        hadamard = torch.kron(hadamard, pair)
    assert torch.equal(mixed(torch.eye(64)), hadamard / 8)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mixed(mixed(x)), x)
    assert torch.equal(mixed(x[:, :100]), x[:, :100])


def test_a_few_large_channels_do_not_coarsen_the_others() -> None:
    """As encoders have them: rounding each line as it is would be twice as far off."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(100, 384, generator=generator)
    x[:, [30, 200]] *= 20
    weight = torch.randn(50, 384, generator=generator) * 0.05
    weight[:, [30, 200]] *= 0.05
    lines, matrix = Quantised.room_for(*x.shape), QuantisedMatrix.of(weight)
    finish(Product(x), Target(quantised=lines))
    out = torch.empty(100, 50)
    finish(Product(torch._int_mm(lines.values, matrix.values.t()), (lines, matrix)), Target(out))
    step = (x.amax(1) - x.amin(1)) / 254
    plain = step[:, None] * torch.round(x / step[:, None])
    error, plain_error = ((y - x @ weight.t()).square().mean() for y in (out, plain @ weight.t()))
    assert error < plain_error / 4


def test_nothing_but_contiguous_memory() -> None:
    product = Product(torch.zeros(8, 4).t())
    target = Target(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"contiguous memory, got strides \(1, 4\)"):
        finish(product, target)


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
    lines = Quantised(t["whole"], t["steps"], t["offsets"])
    matrix = QuantisedMatrix(t["whole"], t["matrix steps"], t["matrix sums"])
    own = SparseSlot(t["rows"], t["columns"], t["differences"], most_in_row=1)
    scale, shift = (PerLine(t[name], t[f"{name} lines"]) for name in ("scale", "shift"))
    finish(
        Product(t["product"], (lines, matrix), Corrections(t["x"], [None, own], t["of_line"])),
        Target(t["out"], Quantised(t["whole"], t["whole steps"], t["whole offsets"])),
        bias=PerLine(t["bias"], t["bias lines"]),
        residual=t["residual"],
        norm=Norm(scale, shift, EPS),
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
    vectors = PerLine(torch.ones(1, size), first)
    out = torch.empty_like(x)
    if step == "bias":
        finish(Product(x), Target(out), bias=vectors)
    elif step == "gelu":
        finish(Product(x.abs() if value < 0 else x), Target(out), gelu="none")
    elif step == "norm":
        finish(Product(x), Target(out), norm=Norm(vectors, vectors, EPS))
    else:
        whole, matrix = Quantised.room_for(*x.shape), QuantisedMatrix.of(torch.eye(size))
        finish(Product(x), Target(quantised=whole))
        finish(Product(whole.values.int(), (whole, matrix)), Target(out))
    assert not out.isfinite().all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001, 0x7FC00000, -0x400000])
def test_no_nan_is_rounded_to_a_number(bits: int) -> None:
    """Rounding adds to the bits: those of some would carry into a zero's, or infinity's."""
    x = torch.full((1, 8), bits, dtype=torch.int32).view(torch.float32)
    out = torch.zeros(1, 8, dtype=torch.bfloat16)
    finish(Product(x), Target(out))
    assert out.isnan().all()
