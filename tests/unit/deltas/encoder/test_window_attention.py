"""Our attention equals PyTorch's, forwards and backwards, whatever lies in a window."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from deltas.encoder.packing import pack
from deltas.encoder.window_attention import _forward, attend, sight

HEADS, WIDTH = 3, 12


def rows_of(*lengths: int) -> list[tuple[list[int], list[int]]]:
    return [([7] * length, [0] * length) for length in lengths]


@pytest.mark.parametrize("lengths", [(5,), (40, 40), (1, 2, 3, 64, 90, 128, 17), (200, 3, 3, 150)])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_are_those_of_pytorch(
    lengths: tuple[int, ...], keyed: bool, per_row: bool
) -> None:
    """Also where packed rows of several keys leave lines that belong to no window."""
    keys = [number % 2 for number in range(len(lengths))] if keyed else None
    batch = pack(rows_of(*lengths), keys=keys)
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = len(batch.input_ids)
    asking = len(batch.first) if per_row else tokens
    seen = sight(batch, torch.float64)
    windows = seen.of_rows if per_row else seen.of_tokens
    assert isinstance(windows, tuple)
    shapes = ((asking, WIDTH), (tokens, 2 * WIDTH), (asking, WIDTH))
    query, key_value, wanted = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    found: list[list[Tensor]] = []
    for function in (attend, _forward):
        inputs = query.clone().requires_grad_(), key_value.clone().requires_grad_()
        out = function(*inputs, windows, HEADS, 0.0)
        out.backward(wanted)
        found.append([out.detach(), *(part.grad for part in inputs if part.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_rows_do_not_see_each_other() -> None:
    """What lies beside a row in its window changes nothing, not even a gradient."""
    batch = pack(rows_of(10, 20, 30))
    seen = sight(batch, torch.float32).of_tokens
    assert isinstance(seen, tuple)
    (windows,) = seen
    query = torch.randn(len(batch.input_ids), WIDTH)
    key_value = torch.randn(len(batch.input_ids), 2 * WIDTH, requires_grad=True)
    out = attend(query, key_value, [windows], HEADS)
    starts = sorted([*batch.first[:3].tolist(), 60])
    for start, stop in pairwise(starts):
        (grad,) = torch.autograd.grad(out[start:stop].sum(), key_value, retain_graph=True)
        assert bool(grad[start:stop].any())
        assert not bool(grad[:start].any())
        assert not bool(grad[stop:].any())
