"""A kernel does each work item once, with any number of threads, with or without OpenMP."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from deltas.kernels import int8, runtime, simd
from deltas.kernels.runtime import Kernel, as_pointer, fetch_add


def _count(arguments: Any) -> None:
    a = numba.carray(arguments, 4, np.int64)
    visits = numba.carray(as_pointer(a[3]), a[1], np.int64)
    while True:
        start = fetch_add(arguments, a[2])
        if start >= a[1]:
            break
        for item in range(start, min(start + a[2], a[1])):
            visits[item] += 1


@pytest.fixture(scope="module")
def counting() -> Kernel:
    """A kernel that counts the visits to each work item."""
    return Kernel(_count)


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


def test_compiled_code_is_cached_by_the_content_of_inlined_files(counting: Kernel) -> None:
    """Every file with functions that kernels of other files inline."""
    visits = np.zeros(1, np.int64)
    counting.launch(1, 1, visits.ctypes.data)
    files = (inspect.getfile(module) for module in (runtime, simd, int8))
    called = b"".join(Path(file).read_bytes() for file in files)
    digest = hashlib.sha256(called).hexdigest()[:16]
    given = os.environ.get("NUMBA_CACHE_DIR", "")
    assert given or numba.config.CACHE_DIR.endswith(f"kernels-{digest}")


@pytest.mark.parametrize("error", [RuntimeError("no locator"), EOFError(), OSError(28, "full")])
def test_code_that_cannot_be_cached_is_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """In an image without a writable folder, for example, or after a power failure."""
    compiled, cfunc = [], numba.cfunc

    def refuse_cache(signature: str, **options: Any) -> Any:
        if options.pop("cache", False):
            raise error
        compiled.append(signature)
        return cfunc(signature, **options)

    monkeypatch.setattr(numba, "cfunc", refuse_cache)
    kernel = Kernel(_count)
    visits = np.zeros(3, np.int64)
    kernel.launch(3, 1, visits.ctypes.data)
    assert visits.tolist() == [1, 1, 1]
    assert len(compiled) == 1
    assert "compiled kernels cannot be cached" in caplog.text
