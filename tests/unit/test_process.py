"""The process around an app: what is set up for whom, and what is left to the user."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

from app import main, process
from app.main import create_app
from app.settings import Settings
from app.tuning import BUDGETS
from deltas import packed_sizes


@pytest.fixture(autouse=True)
def _keep_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    monkeypatch.setattr(process, "keep_freed_memory", lambda: None)
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


def test_an_app_in_somebody_elses_process_leaves_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = sys.getswitchinterval()
    assert not create_app(Settings()).state.owns_process
    assert sys.getswitchinterval() == before
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
    assert not caplog.messages


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_who_has_chosen_is_not_warned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "7"
    create_app()
    assert not caplog.messages
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


def test_what_is_loaded_is_not_searched_for_garbage() -> None:
    gc.unfreeze()
    process.settle_process()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] == 50_000
