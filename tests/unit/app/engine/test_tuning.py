"""Measured numbers serve the next start on the same machine with the same settings only."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine import tuning, warm_up
from app.engine.engine import Engine
from app.engine.tuning import Tuning, recall, remember
from deltas import Backbone, Store
from deltas.kernels import disk_cache

MEASURED = Tuning(threads=2, workers=1, share_threads=2, batch_tokens=1024)
GIVEN = 0, 0, 0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deltabert"


@pytest.fixture
def engine(tiny_backbone: Backbone, pooled_deltas: Path) -> Engine:
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    return Engine(tiny_backbone, store, device="cpu", precision="fp32")


def test_measured_numbers_are_recalled(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert recall(engine, GIVEN) is None
    remember(engine, GIVEN, MEASURED)
    assert recall(engine, GIVEN) == MEASURED
    assert "measured by an earlier start: threads=2 workers=1" in caplog.text


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (tuning, "cpu_model"),
        (tuning, "num_cpus"),
        (tuning, "installed_version"),
        (torch, "__version__"),
    ],
)
def test_another_machine_or_release_measures_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    remember(engine, GIVEN, MEASURED)
    monkeypatch.setattr(place, name, "0.0" if place is torch else lambda: "another")
    assert recall(engine, GIVEN) is None


def test_other_settings_measure_again(
    engine: Engine, tiny_backbone: Backbone, pooled_deltas: Path
) -> None:
    remember(engine, GIVEN, MEASURED)
    assert recall(engine, (2, 0, 0)) is None
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    slots = Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=1)
    assert recall(slots, GIVEN) is None
    halves = Engine(tiny_backbone, store, device="cpu", precision="bf16")
    assert recall(halves, GIVEN) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda document: {"facts": document["facts"]},
        lambda document: document | {"facts": {}},
        lambda document: document | {"tuning": document["tuning"] | {"threads": 0}},
        lambda document: document | {"tuning": document["tuning"] | {"threads": True}},
        lambda document: document | {"tuning": document["tuning"] | {"more": 1}},
        lambda _: [],
    ],
)
def test_a_file_of_another_form_is_measured_again(
    engine: Engine, cache: Path, caplog: pytest.LogCaptureFixture, change: Any
) -> None:
    remember(engine, GIVEN, MEASURED)
    (file,) = cache.iterdir()
    content = disk_cache.read(file.name)
    assert content is not None
    disk_cache.write(file.name, json.dumps(change(json.loads(content))).encode())
    assert recall(engine, GIVEN) is None
    assert f"{file} has no such numbers; measuring again" in caplog.text


def test_a_second_start_measures_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        first = warm_up.warm_up(engine, threads=1, reuse=True)
        monkeypatch.setattr(warm_up, "choose", None)  # would be called
        assert warm_up.warm_up(engine, threads=1, reuse=True) == first
        with pytest.raises(TypeError):
            warm_up.warm_up(engine, threads=1)
    finally:
        torch.set_num_threads(before)
