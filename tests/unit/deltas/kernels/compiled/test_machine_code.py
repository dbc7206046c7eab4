"""Machine code comes from the disk if it was compiled of the same sources for this processor."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import binding

from deltas.kernels import disk_cache
from deltas.kernels.compiled import HEAD, machine_code
from deltas.kernels.compiled.__main__ import compile_kernel
from deltas.kernels.compiled.language import as_pointer, fetch_add
from deltas.kernels.runtime import Kernel

NAME = f"{__name__}:_add_one"


def _add_one(arguments: Any) -> None:
    a = numba.carray(arguments, HEAD + 1, np.int64)
    while fetch_add(arguments, 1) < a[1]:
        numba.carray(as_pointer(a[HEAD]), 1, np.int64)[0] += 1


def _allocate(arguments: Any) -> None:
    a = numba.carray(arguments, HEAD + 1, np.int64)
    made = np.ones(a[1], np.int64)
    numba.carray(as_pointer(a[HEAD]), 1, np.int64)[0] += made.sum()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deltabert"


def count(kernel: Kernel) -> int:
    value = np.zeros(1, np.int64)
    kernel.launch(3, 1, value.ctypes.data)
    return int(value[0])


def test_compiled_once_it_is_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert count(Kernel(NAME)) == 3
    assert f"compiled {NAME} in" in caplog.text
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(machine_code, "_compiled_here", None)  # would be called
    assert count(Kernel(NAME)) == 3


def test_what_was_begun_is_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"{__name__}:_allocate"
    compiled: list[str] = []
    open_process = subprocess.Popen

    def count_compilations(command: list[str], **options: Any) -> Any:
        compiled.append(command[-1])
        return open_process(command, **options)

    monkeypatch.setattr(subprocess, "Popen", count_compilations)
    monkeypatch.delitem(sys.modules, "numba")
    machine_code.begin([NAME, other])
    machine_code.begin([NAME, other])
    with pytest.raises(ValueError, match="_allocate calls"):
        machine_code.load(other)
    assert count(Kernel(NAME)) == 3
    assert len(list(cache.iterdir())) == 1
    assert machine_code._compilers == {}
    assert sorted(compiled) == sorted([NAME, other])


def test_a_damaged_file_is_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    Kernel(NAME)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert count(Kernel(NAME)) == 3
    assert "is damaged and made again" in caplog.text
    assert disk_cache.read(file.name)


@pytest.mark.parametrize("changed", ["get_host_cpu_name", "version"])
def test_code_of_another_processor_or_release_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = machine_code.key(NAME)
    assert before == machine_code.key(NAME)
    place = binding if changed == "get_host_cpu_name" else machine_code
    monkeypatch.setattr(place, changed, lambda *_: "another")
    assert machine_code.key(NAME) != before


def test_code_of_other_sources_is_not_taken() -> None:
    other = machine_code.key("deltas.kernels.compiled.epilogue:kernel")
    assert other != machine_code.key(NAME)


@pytest.mark.parametrize("may_start", [True, False])
def test_it_is_compiled_in_a_process_of_its_own_if_one_can_be_started(
    cache: Path, monkeypatch: pytest.MonkeyPatch, may_start: bool
) -> None:
    started: list[list[str]] = []
    open_process = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        started.append(command)
        if not may_start:
            raise PermissionError("no new processes")
        return open_process(command, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.delitem(sys.modules, "numba")
    assert count(Kernel(NAME)) == 3
    assert started == [[sys.executable, "-m", "deltas.kernels.compiled", NAME]]
    assert len(list(cache.iterdir())) == 1


def test_a_kernel_that_needs_numba_is_refused() -> None:
    with pytest.raises(ValueError, match=r"_allocate calls .*NRT.*take scratch memory"):
        compile_kernel(f"{__name__}:_allocate")
