"""A kernel does each work item once, with any number of threads, with or without OpenMP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from deltas.kernels import runtime
from deltas.kernels.compiled import HEAD
from deltas.kernels.compiled.language import as_pointer, fetch_add, own_scratch
from deltas.kernels.runtime import Kernel


def _count(arguments: Any) -> None:
    a = numba.carray(arguments, HEAD + 1, np.int64)
    visits = numba.carray(as_pointer(a[HEAD]), a[1], np.int64)
    while True:
        start = fetch_add(arguments, a[2])
        if start >= a[1]:
            break
        for item in range(start, min(start + a[2], a[1])):
            visits[item] += 1


def _note_scratch(arguments: Any) -> None:
    """Write each thread's scratch address into its own scratch and into the result."""
    a = numba.carray(arguments, HEAD + 1, np.int64)
    address = own_scratch(a)
    mine = numba.carray(as_pointer(address), 1, np.int64)
    noted = numba.carray(as_pointer(a[HEAD]), a[1], np.int64)
    while True:
        item = fetch_add(arguments, 1)
        if item >= a[1]:
            break
        mine[0] = item
        for _ in range(1000):
            if mine[0] != item:
                return
        noted[item] = address


@pytest.fixture(scope="module")
def counting() -> Kernel:
    """A kernel that counts the visits to each work item."""
    return Kernel(f"{__name__}:_count")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_items", [0, 1, 7, 1000, 100_003])
@pytest.mark.usefixtures("two_threads")
def test_every_work_item_is_done_once(counting: Kernel, num_items: int) -> None:
    for _ in range(5):
        visits = np.zeros(num_items + 1, np.int64)
        counting.launch(num_items, 1000, visits.ctypes.data)
        assert visits[:num_items].tolist() == [1] * num_items
        assert visits[num_items] == 0


@pytest.mark.usefixtures("two_threads")
def test_threads_share_no_scratch_memory() -> None:
    kernel = Kernel(f"{__name__}:_note_scratch")
    for num_floats in (1, 1000, 17):
        noted = np.zeros(1000, np.int64)
        kernel.launch(len(noted), 1000, noted.ctypes.data, scratch_floats=num_floats)
        addresses = sorted(set(noted.tolist()))
        assert addresses[0] > 0
        assert len(addresses) <= 2
        assert all(b - a >= 4 * num_floats for a, b in pairwise(addresses))


def test_without_openmp_the_calling_thread_does_everything(
    counting: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime._parallel.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_loaded_openmp", lambda: None)
        visits = np.zeros(100, np.int64)
        counting.launch(100, 1000, visits.ctypes.data)
    runtime._parallel.cache_clear()
    assert visits.tolist() == [1] * 100


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another OpenMP")
def test_pytorchs_own_openmp_runs_kernels() -> None:
    path = runtime._loaded_openmp()
    assert path is not None
    assert "libgomp" in path
    assert path.startswith(str(Path(torch.__file__).resolve().parent))
