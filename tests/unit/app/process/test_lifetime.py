"""The set-up of a process: interval of the interpreter, memory, garbage and variables."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator

import pytest

import deltas
from app import main
from app.engine.warm_up import BUDGETS
from app.main import create_app
from app.process.lifetime import memory_given_back, settle_process
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


def test_memory_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back, others = threading.Semaphore(0), set(threading.enumerate())
    monkeypatch.setattr(hardware, "give_back_freed_memory", given_back.release)
    with memory_given_back(0.001):
        for _ in range(3):
            assert given_back.acquire(timeout=10)
    new = set(threading.enumerate()) - others
    assert not [thread for thread in new if thread.name == "memory"]
