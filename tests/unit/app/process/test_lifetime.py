"""The set-up of a process: interval of the interpreter, memory, garbage and variables."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deltas
from app import main
from app.engine.warm_up import BUDGETS
from app.main import create_app
from app.process.lifetime import memory_given_back, settle_process, unmap_code
from app.process.settings import Settings
from deltas import hardware, packed_sizes


@pytest.fixture(autouse=True)
def _keep_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    monkeypatch.setattr(deltas, "keep_freed_memory", lambda: None, raising=False)
    monkeypatch.setattr(main, "configure_logging", lambda *_: None)
    monkeypatch.setattr(os, "environ", {})
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_uvicorns_factory_sets_up_the_process(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    # Five shapes of products, for all processors and for a share of them.
    most = 5 * 2 * len(packed_sizes(BUDGETS[-1]))
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) >= most
    assert app.state.owns_process
    (line,) = caplog.messages
    assert line.startswith("GOMP_SPINCOUNT is not set: ")
    assert "python -m app" in line


def test_an_app_leaves_another_programs_process_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = sys.getswitchinterval()
    assert not create_app(Settings()).state.owns_process
    assert sys.getswitchinterval() == before
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
    assert not caplog.messages


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_a_spin_policy_of_the_user_is_kept(name: str, caplog: pytest.LogCaptureFixture) -> None:
    os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "7"
    create_app()
    assert not caplog.messages
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


def test_loaded_objects_are_not_searched_for_garbage() -> None:
    gc.unfreeze()
    settle_process()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] == 50_000


def mapped_code_kb(library: str) -> int:
    smaps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"r-xp .*/{re.escape(library)}\n(?:[A-Z].*\n)*?Rss: +(\d+) kB", smaps)
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_that_the_start_has_used_is_unmapped_and_can_be_called_again() -> None:
    torch.linalg.svd(torch.eye(8))  # code that nothing else of this test calls
    before = mapped_code_kb("libtorch_cpu.so")
    unmap_code()
    assert mapped_code_kb("libtorch_cpu.so") < before / 2
    assert torch.linalg.svd(torch.eye(8)).S.tolist() == [1.0] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_that_was_changed_in_memory_keeps_its_changes(tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(bytes(mmap.PAGESIZE))
    with (tmp_path / "code").open("r+b") as file:
        code = mmap.mmap(
            file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
    code[0] = 7
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    allowed = mmap.PROT_READ | mmap.PROT_EXEC
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, allowed) == 0
    unmap_code()
    assert code[0] == 7


def test_memory_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back, others = threading.Semaphore(0), set(threading.enumerate())
    monkeypatch.setattr(hardware, "give_back_freed_memory", given_back.release)
    with memory_given_back(0.001):
        for _ in range(3):
            assert given_back.acquire(timeout=10)
    new = set(threading.enumerate()) - others
    assert not [thread for thread in new if thread.name == "memory"]
