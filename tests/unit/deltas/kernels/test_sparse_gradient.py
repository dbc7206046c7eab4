"""The gradient of selected values equals the dense gradient there, at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deltas.kernels import sparse_gradient
from deltas.kernels.sparse_gradient import sddmm
from tests.laws import law


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor made while it is active."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return result


@law(60)
@given(
    tokens=st.integers(1, 200),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_equals_the_dense_gradient_there(
    tokens: int, height: int, width: int, share: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(tokens, height, generator=generator).to(dtype)
    x = torch.randn(tokens, width, generator=generator).to(dtype)
    indices = torch.randperm(height * width, generator=generator)
    indices = indices[: max(1, round(share * len(indices)))]
    found = sddmm(grad, x, indices)
    dense = grad.double().t() @ x.double()
    expected = dense.view(-1)[indices]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * tokens**0.5 + 1e-5, rtol=1e-5)
    gathered = sparse_gradient._gathered(grad.float(), x.float(), indices // width, indices % width)
    torch.testing.assert_close(gathered, found, atol=1e-5 * tokens**0.5 + 1e-5, rtol=1e-5)


def test_the_number_of_threads_changes_no_bit() -> None:
    """Otherwise a resumed run could differ from one that was never stopped."""
    generator = torch.Generator().manual_seed(1)
    grad, x = (torch.randn(1000, 40, generator=generator) for _ in range(2))
    indices = torch.randperm(1600, generator=generator)[:700]
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(sddmm(grad, x, indices))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    found = sddmm(torch.ones(tokens, 2), torch.ones(tokens, 3), torch.tensor([0]))
    assert found.tolist() == [float(tokens)]


@pytest.mark.parametrize("way", ["_read_in_place", "_gathered"])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The gradient of a large selection is the same in fewer blocks, or in more parts."""
    grad, x = torch.randn(2, 1000, 100, generator=torch.Generator().manual_seed(1))
    indices = torch.arange(100 * 100)
    rows, columns = (indices // 100).int(), (indices % 100).int()
    found, most = [], []
    for values in (1 << 20, 20_000):
        monkeypatch.setattr(sparse_gradient, "_MAX_VALUES", values)
        with Largest() as largest:
            found.append(getattr(sparse_gradient, way)(grad, x, rows, columns))
        most.append(largest.size)
    assert most[0] > grad.numel()
    assert most[1] <= grad.numel()
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-5)
