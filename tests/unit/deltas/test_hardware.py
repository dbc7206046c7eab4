"""Choice of device and precision, and the settings of the allocator."""

from __future__ import annotations

import pytest
import torch

from deltas import DTYPES, BackboneError, hardware, pick_device, pick_precision


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu").type == "cpu"
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device().type == expected


def test_missing_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(BackboneError, match=r"'cuda' was asked for.*use 'auto' or 'cpu'"):
        pick_device("cuda")


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_the_user_has_the_last_word(wanted: str) -> None:
    assert pick_precision(wanted, torch.device("cpu")) == wanted


@pytest.mark.parametrize(
    ("avx512", "amd", "amx", "expected"),
    [
        (False, False, False, "fp32"),
        (False, True, False, "fp32"),
        (True, False, False, "fp32"),
        (True, True, False, "bf16"),
        (True, False, True, "bf16"),
    ],
)
def test_bfloat16_where_the_cpu_multiplies_it_faster(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amd: bool, amx: bool, expected: str
) -> None:
    monkeypatch.setattr(hardware, "_is_amd", lambda: amd)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert pick_precision("auto", torch.device("cpu")) == expected


def test_this_machine_has_an_answer() -> None:
    assert pick_precision("auto", torch.device("cpu")) in DTYPES
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert expected == DTYPES


def test_int8_runs_on_cpus_only() -> None:
    with pytest.raises(BackboneError, match="'int8' runs on CPUs only, not on 'cuda'"):
        pick_precision("int8", torch.device("cuda"))


@pytest.mark.parametrize(
    ("wanted", "has", "given"), [("bf16", True, "bf16"), ("auto", False, "fp32")]
)
def test_a_gpu_gets_bfloat16_if_it_has_it(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has: bool, given: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has)
    assert pick_precision(wanted, torch.device("cuda")) == given


def test_bfloat16_on_a_gpu_without_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention kernels would fail in the middle of a pass."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: False)
    with pytest.raises(BackboneError, match=r"this GPU has no bfloat16.*use 'auto' or 'fp32'"):
        pick_precision("bf16", torch.device("cuda"))


@pytest.mark.parametrize("amx", [True, False])
def test_int8_is_discouraged_where_bfloat16_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(hardware, "multiplies_int8_exactly", lambda: True)
    assert pick_precision("int8", torch.device("cpu")) == "int8"
    assert ("'bf16' is faster than 'int8'" in caplog.text) == amx


def add_in_16_bits(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multiply like a CPU without VNNI: x made positive, sums of two products saturated."""
    products = (x.int() + 128).unsqueeze(2) * y.int()
    pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
    return pairs.sum(1) - 128 * y.int().sum(0)


def test_int8_needs_exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    check = hardware.multiplies_int8_exactly
    monkeypatch.setattr(hardware, "multiplies_int8_exactly", check.__wrapped__)
    monkeypatch.setattr(torch, "_int_mm", lambda x, y: (x.double() @ y.double()).int())
    assert pick_precision("int8", torch.device("cpu")) == "int8"
    monkeypatch.setattr(torch, "_int_mm", add_in_16_bits)
    with pytest.raises(BackboneError, match="needs a CPU with exact int8 products"):
        pick_precision("int8", torch.device("cpu"))
