"""Wrappers of private operators compute the same without them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deltas.kernels import private_apis


@pytest.mark.parametrize("is_there", [True, False])
def test_softmax_backward_is_autograds(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    if not is_there:
        monkeypatch.delattr(torch, "_softmax_backward_data")
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    weights = torch.softmax(scores, -1)
    (expected,) = torch.autograd.grad(weights, scores, grad, retain_graph=True)
    found = private_apis.softmax_backward(grad, weights.detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_in_place_is_gelu(
    monkeypatch: pytest.MonkeyPatch, is_there: bool, approximate: str
) -> None:
    x = torch.linspace(-3, 3, 7)
    expected = F.gelu(x, approximate=approximate)
    if not is_there:
        monkeypatch.setattr(torch, "ops", object())
    torch.testing.assert_close(private_apis.gelu_in_place(x.clone(), approximate), expected)


def test_a_pytorch_that_cannot_tell_has_no_fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert not private_apis.has_amx_tiles()
    assert not private_apis.has_avx512_bf16()
