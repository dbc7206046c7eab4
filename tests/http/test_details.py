"""The change of a delta by layer, and the predictions of its run, over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from deltas import Backbone, Store, write_delta
from deltas.publish.norms import NormCache, change_norms
from deltas.store.predictions import predictions_path
from tests.factories import TOY_TASKS, make_delta
from tests.http.admin_key import ADMIN, KEYS
from training.data.rows import Rows
from training.run.output import PredictedSplit, write_predictions

Start = Callable[..., TestClient]
CheckError = Callable[..., dict[str, Any]]


@pytest.fixture
def judged(folder: Path, tiny_backbone: Backbone) -> Path:
    """A folder with a delta that has the predictions of its run."""
    path = folder / "head.safetensors"
    delta = write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head"), path)
    rows = Rows([("secret",)] * 3, [0, 1, 1])
    split = PredictedSplit("validation", rows, torch.tensor([[2.0, 0.5], [0.0, 1.0], [1.0, 0.0]]))
    write_predictions(predictions_path(path), [split], delta.version)
    return folder


def test_the_change_is_that_of_the_file(
    client: TestClient, tiny_backbone: Backbone, tiny_deltas: Path
) -> None:
    store = Store([tiny_deltas])
    for strategy in ("bitfit", "layernorm", "random:0.05", "top:1"):
        record = store.resolve("toy2", strategy)
        body = client.get(f"/deltas/toy2/{strategy}/norms").json()
        assert body["version"] == record.version
        expected = change_norms(record.load(), tiny_backbone)
        assert body["norms"] == [each.model_dump() for each in expected]
        assert expected
    assert client.get("/deltas/toy2/head/norms").json()["norms"] == [], "only the head is trained"


def test_predictions_are_served_without_their_texts(start: Start, judged: Path) -> None:
    answer = start(deltas=(judged,)).get("/deltas/toy2/head/predictions")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["rows"], body["gold"]) == ([1, 2, 3], [0, 1, 1])
    assert body["logits"] == [[2.0, 0.5], [0.0, 1.0], [1.0, 0.0]]
    assert (body["split"], body["splits"], body["next"]) == ("validation", {"validation": 3}, None)
    assert "secret" not in answer.text


def test_a_delta_without_predictions_says_how_to_get_them(
    client: TestClient, check_error: CheckError
) -> None:
    error = check_error(client.get("/deltas/toy2/head/predictions"), 404, "no_predictions")
    assert "training.fit" in error["message"]
    for route in ("norms", "predictions"):
        check_error(client.get(f"/deltas/toy2/no-such/{route}"), 404, "not_found")
        check_error(
            client.get(f"/deltas/toy2/bitfit/{route}", params={"version": "x"}), 404, "not_found"
        )
    answer = client.get("/deltas/toy2/bitfit/predictions", params={"limit": 0})
    check_error(answer, 422, "invalid_input")


def test_predictions_of_a_replaced_version_are_not_served(
    start: Start, judged: Path, tiny_backbone: Backbone, tmp_path: Path, check_error: CheckError
) -> None:
    server = start(deltas=(judged,), keys=KEYS)
    newer = tmp_path / "newer.safetensors"
    write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", seed=7), newer)
    before = server.get("/deltas/toy2/head", headers=ADMIN).json()["version"]
    url = "/deltas/toy2/head"
    assert server.put(url, content=newer.read_bytes(), headers=ADMIN).status_code == 200
    check_error(server.get(f"{url}/predictions", headers=ADMIN), 404, "no_predictions")
    assert before != server.get(url, headers=ADMIN).json()["version"]


def test_a_file_that_has_gone_is_told(start: Start, judged: Path, check_error: CheckError) -> None:
    server = start(deltas=(judged,))
    (judged / "head.safetensors").unlink()
    answer = server.get("/deltas/toy2/head/norms")
    check_error(answer, 503, "delta_unavailable")
    assert str(judged) not in answer.text


def test_keys_hide_the_details_of_other_tasks(
    start: Start, judged: Path, check_error: CheckError
) -> None:
    keys = KEYS.replace('tasks = ["*"]}\n', 'tasks = ["toy3"]}\n', 1)
    server = start(deltas=(judged,), keys=keys)
    for route in ("norms", "predictions"):
        assert server.get(f"/deltas/toy2/head/{route}").status_code in (401, 403)
        assert server.get(f"/deltas/toy2/head/{route}", headers=ADMIN).status_code == 200


def test_requests_for_files_leave_threads_to_others(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of keys is followed in a thread, too: a flood must not keep a key from removal."""
    client, is_open = start(), threading.Event()
    monkeypatch.setattr(NormCache, "of", lambda *_: is_open.wait(60))

    async def in_thread() -> bool:
        return await asyncio.wait_for(asyncio.to_thread(lambda: True), 30)

    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(client.get, "/deltas/toy2/bitfit/norms") for _ in range(50)]
        try:
            time.sleep(1)  # the requests are under way
            assert client.portal is not None
            assert client.portal.call(in_thread)
        finally:
            is_open.set()
            for each in asked:
                each.result()
