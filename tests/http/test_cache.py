"""A server with fewer slots than deltas: equal answers, and bad files fail only their requests."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.engine.loader import Loader
from app.main import create_app
from app.process.settings import Settings, SettingsError
from deltas import Backbone, Record, delta_path
from deltas.encoder.bank import StagedDelta

Start = Callable[..., TestClient]
TOYS = ("toy2", "toy3", "toy68", "toymulti", "toyreg")
STRATEGIES = ("bitfit", "layernorm", "random:0.05", "head", "top:1")
ALL = [{"task": task, "strategy": strategy} for task in TOYS for strategy in STRATEGIES]
ROW = {"text": "a good film", "text_pair": "not very bad"}


@pytest.fixture
def folder(tiny_deltas: Path, tmp_path: Path) -> Path:
    """A copy of the toy deltas, to be spoilt."""
    return Path(shutil.copytree(tiny_deltas, tmp_path / "deltas"))


def inputs_for(client: TestClient, task: str) -> dict[str, str]:
    tasks = client.get("/tasks").json()["tasks"]
    (fields,) = [found["text_fields"] for found in tasks if found["task"] == task]
    return dict(zip(fields, ("a good film", "not very bad"), strict=False))


def predict(client: TestClient, target: dict[str, str]) -> Any:
    body = {"inputs": inputs_for(client, target["task"]), "strategy": target["strategy"]}
    return client.post(f"/predict/{target['task']}", json=body)


def scores(answer: Any) -> list[float]:
    (found,) = answer["predictions"]
    return [found["value"]] if "value" in found else list(found["scores"].values())


def metric(client: TestClient, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_four_slots_answer_as_all(start: Start, client: TestClient, workers: int) -> None:
    """One request after the other, then many at once."""
    few = start(max_slots=4, workers=workers, threads=2)
    expected = [predict(client, target).json() for target in ALL]
    with ThreadPoolExecutor(8) as threads:
        at_once = list(threads.map(lambda target: predict(few, target), ALL * 3))
    found = [predict(few, target) for target in ALL]
    for answer, theirs in zip([*found, *at_once], expected * 4, strict=True):
        assert answer.status_code == 200, answer.text
        assert scores(answer.json()) == pytest.approx(scores(theirs), abs=1e-5)
    assert metric(few, "deltabert_slots_used") == 4
    assert metric(few, "deltabert_slot_evictions_total") > 0
    assert metric(few, 'deltabert_delta_loads_total{outcome="failed"}') == 0
    lookups = [
        metric(few, f'deltabert_slot_lookups_total{{outcome="{outcome}"}}')
        for outcome in ("hit", "prefetched", "waited")
    ]
    assert metric(few, 'deltabert_delta_loads_total{outcome="ok"}') == sum(lookups[1:])
    assert sum(lookups) >= 100
    mine, theirs = few.get("/deltas").json(), client.get("/deltas").json()
    assert sum(delta.pop("loaded") for delta in mine["deltas"]) == 4
    assert all(delta.pop("loaded") for delta in theirs["deltas"])
    assert mine == theirs


def test_one_request_for_more_deltas_than_slots(start: Start, client: TestClient) -> None:
    targets = [target for target in ALL if target["task"] in ("toy2", "toy68", "toymulti")]
    body = {"inputs": "a good film", "targets": targets}
    expected = client.post("/predict", json=body)
    found = start(max_slots=4).post("/predict", json=body)
    assert found.status_code == 200, found.text
    for mine, theirs in zip(found.json()["results"], expected.json()["results"], strict=True):
        assert scores(mine) == pytest.approx(scores(theirs), abs=1e-5)


@pytest.mark.parametrize("spoil", ["cut", "gone"])
def test_a_file_spoilt_after_the_start_fails_only_its_requests(
    start: Start, folder: Path, tiny_backbone: Backbone, check_error: Any, spoil: str
) -> None:
    few = start(max_slots=4, deltas=(folder,), pinned=("toyreg/head",))
    path = delta_path(folder, tiny_backbone.ref.id, "toymulti", "bitfit")
    content = path.read_bytes()
    if spoil == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda target: predict(few, target), ALL * 2))
    for target, answer in zip(ALL * 2, answers, strict=True):
        if target == {"task": "toymulti", "strategy": "bitfit"}:
            error = check_error(answer, 503, "delta_unavailable")
            assert error["message"].startswith("the delta toymulti/bitfit, version ")
            assert str(folder) not in error["message"]
        else:
            assert answer.status_code == 200, answer.text
    assert metric(few, 'deltabert_dropped_requests_total{reason="failed"}') == 2
    assert few.get("/health/ready").status_code == 200
    path.write_bytes(content)
    assert predict(few, {"task": "toymulti", "strategy": "bitfit"}).status_code == 200


def test_a_file_that_hangs_delays_no_other_request(
    start: Start, check_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in the same batch, later batches and the health check are answered."""
    is_open, load = threading.Event(), Loader.load

    def hang(loader: Loader, record: Record) -> StagedDelta:
        if record.key[:2] == ("toymulti", "bitfit"):
            assert is_open.wait(60)
        return load(loader, record)

    monkeypatch.setattr(Loader, "load", hang)
    few = start(max_slots=4, pinned=("toy68", "toyreg"))
    few.app.state.serving.engine.cache.load_timeout_s = 6.0  # type: ignore[attr-defined]
    hung = {"task": "toymulti", "strategy": "bitfit"}
    others = [target for target in ALL if target != hung and target["task"] != "toy2"]
    try:
        with ThreadPoolExecutor(2) as threads:
            stuck = [threads.submit(predict, few, hung) for _ in range(2)]
            for target in (*others[:3], {"task": "toy68", "strategy": "bitfit"}):
                assert predict(few, target).status_code == 200
            time.sleep(1.1)  # now its thread counts as hanging, and another one loads
            for target in others[3:6]:
                assert predict(few, target).status_code == 200
            assert few.get("/health/ready").status_code == 200
            assert not any(done.done() for done in stuck)
            for answer in (*(done.result() for done in stuck), predict(few, hung)):
                error = check_error(answer, 503, "delta_unavailable")
                assert "reading its file takes too long" in error["message"]
    finally:
        is_open.set()
    deadline = time.monotonic() + 30
    while predict(few, hung).status_code != 200:
        assert time.monotonic() < deadline, "it is loaded by now"


def test_pinned_deltas_are_resident_from_the_start(start: Start) -> None:
    few = start(max_slots=3, pinned=("toyreg/random:0.05", "toy68"))
    for target in ALL:
        assert predict(few, target).status_code == 200
    before = metric(few, 'deltabert_slot_lookups_total{outcome="hit"}')
    predict(few, {"task": "toyreg", "strategy": "random:0.05"})
    predict(few, {"task": "toy68", "strategy": "bitfit"})
    assert metric(few, 'deltabert_slot_lookups_total{outcome="hit"}') == before + 2


@pytest.mark.parametrize(
    ("pinned", "problems"),
    [
        (("toy2", "toi68"), ["PINNED names 'toi68': unknown task 'toi68'. Did you mean 'toy68'"]),
        (("toy2/bitfitt", "x"), ["'toy2/bitfitt': unknown strategy 'bitfitt'. Did", "names 'x'"]),
        (("toy2", "toy3", "toy68", "toyreg"), ["no slot is left for the other 21"]),
    ],
)
def test_impossible_pins_are_an_error_at_the_start(
    tiny_backbone: Backbone, tiny_deltas: Path, pinned: tuple[str, ...], problems: list[str]
) -> None:
    settings = Settings(deltas=(tiny_deltas,), zoo=False, max_slots=4, pinned=pinned)
    app: FastAPI = create_app(settings, backbone=tiny_backbone)
    with pytest.raises(SettingsError) as caught, TestClient(app):
        pass
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert expected in found
