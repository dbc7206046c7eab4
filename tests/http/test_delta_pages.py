"""`GET /deltas` by pages and filters; its size, and that of `/metrics`, with many deltas."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone, TaskSpec, delta_path, write_delta

CheckError = Callable[..., dict[str, Any]]
Start = Callable[..., TestClient]


def names(body: dict[str, Any]) -> list[str]:
    return [f"{delta['task']}/{delta['strategy']}" for delta in body["deltas"]]


def walk(client: TestClient, path: str) -> Iterator[dict[str, Any]]:
    """Follow `next` from page to page."""
    following: str | None = path
    while following is not None:
        answer = client.get(following)
        assert answer.status_code == 200, answer.text
        yield answer.json()
        following = answer.json()["next"]


@pytest.fixture
def damaged(start: Start, tiny_deltas: Path, tmp_path: Path) -> TestClient:
    """A server of the 25 tiny deltas, two of them in memory, and three damaged files."""
    for name in ("Toy2.safetensors", "b.safetensors", "c.safetensors"):
        (tmp_path / name).write_bytes(b"no delta")
    return start(deltas=(tiny_deltas, tmp_path), max_slots=2)


def test_one_page_has_all_if_they_are_few(client: TestClient) -> None:
    body = client.get("/deltas").json()
    assert len(body["deltas"]) == body["total"] == 25
    assert body["rejected"] == []
    assert body["next"] is None
    assert all(delta["loaded"] for delta in body["deltas"])


def test_pages_have_each_delta_and_file_once(damaged: TestClient) -> None:
    whole = damaged.get("/deltas").json()
    assert whole["total"] == 28
    pages = list(walk(damaged, "/deltas?limit=4"))
    assert [len(page["deltas"]) + len(page["rejected"]) for page in pages] == [4] * 7
    assert [name for page in pages for name in names(page)] == names(whole)
    assert [each for page in pages for each in page["rejected"]] == whole["rejected"]
    assert {page["total"] for page in pages} == {28}


def test_a_page_behind_the_last_is_empty(client: TestClient) -> None:
    body = client.get("/deltas?offset=1000").json()
    assert body == {"deltas": [], "rejected": [], "total": 25, "next": None}


@pytest.mark.parametrize(
    ("query", "num_deltas", "num_files"),
    [
        ("task=toy2", 5, 0),
        ("strategy=random:0.05", 5, 0),
        ("task=toy2&strategy=head", 1, 0),
        ("task=nope", 0, 0),
        ("status=served", 25, 0),
        ("status=refused", 0, 3),
        ("status=loaded", 2, 0),
        ("q=TOY2", 5, 1),
        ("q=toy2&status=refused", 0, 1),
        ("q=toy2/head", 1, 0),
        ("q=toy2&task=toy3", 0, 0),
        ("q=%F0%9F%8E%AC", 0, 0),
    ],
)
def test_filters(damaged: TestClient, query: str, num_deltas: int, num_files: int) -> None:
    body = damaged.get(f"/deltas?{query}").json()
    assert (len(body["deltas"]), len(body["rejected"])) == (num_deltas, num_files)
    assert body["total"] == num_deltas + num_files
    seen = list(walk(damaged, f"/deltas?{query}&limit=1"))
    assert sum(len(page["deltas"]) for page in seen) == num_deltas
    assert sum(len(page["rejected"]) for page in seen) == num_files


def test_a_version_can_be_searched(client: TestClient) -> None:
    version = client.get("/deltas/toy3/head").json()["version"]
    (found,) = client.get("/deltas", params={"q": version}).json()["deltas"]
    assert (found["task"], found["strategy"], found["version"]) == ("toy3", "head", version)


def test_loaded_follows_the_cache(damaged: TestClient) -> None:
    assert damaged.post("/predict/toymulti", json={"inputs": "a"}).status_code == 200
    (found,) = damaged.get("/deltas?task=toymulti&strategy=bitfit").json()["deltas"]
    assert found["loaded"] is True
    assert len(damaged.get("/deltas?status=loaded").json()["deltas"]) == 2


def test_the_next_page_is_below_the_servers_prefix(start: Start) -> None:
    body = start(root_path="/models").get("/models/deltas?limit=20").json()
    assert body["next"] == "/models/deltas?limit=20&offset=20"


@pytest.mark.parametrize(
    ("query", "field", "problem"),
    [
        ("limit=0", "limit", "greater than or equal to 1"),
        ("limit=1001", "limit", "less than or equal to 1000"),
        ("limit=many", "limit", "valid integer"),
        ("offset=-1", "offset", "greater than or equal to 0"),
        ("status=broken", "status", "'served', 'loaded' or 'refused'"),
        ("q=", "q", "at least 1 character"),
        ("ofset=3", "ofset", "Did you mean 'offset'?"),
        (f"q={'x' * 257}", "q", "at most 256 characters"),
    ],
)
def test_a_bad_query_is_named(
    client: TestClient, check_error: CheckError, query: str, field: str, problem: str
) -> None:
    error = check_error(client.get(f"/deltas?{query}"), 422, "invalid_input")
    assert error["details"][0]["field"] == field
    assert problem in error["details"][0]["problem"]


def test_a_long_reason_is_cut(
    start: Start, make_delta: Callable[..., Any], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"\x80" * 5000)
    (refused,) = start(deltas=(tmp_path,)).get("/deltas").json()["rejected"]
    assert len(refused["reason"]) <= 1004


@pytest.mark.parametrize(("path", "member"), [("/tasks", "tasks"), ("/benchmark", "rows")])
def test_tasks_and_scores_come_by_pages_if_asked_for(
    client: TestClient, path: str, member: str
) -> None:
    whole = client.get(path).json()
    assert whole["next"] is None
    assert whole["total"] == len(whole[member]) > 4
    pages = list(walk(client, f"{path}?limit=2"))
    assert [entry for page in pages for entry in page[member]] == whole[member]
    assert {page["total"] for page in pages} == {whole["total"]}
    assert {len(page[member]) for page in pages[:-1]} == {2}
    (found,) = walk(client, f"{path}?q=YREG")
    assert found[member] == [entry for entry in whole[member] if entry["task"] == "toyreg"]
    assert found["total"] == len(found[member]) > 0
    beyond = client.get(f"{path}?offset=999").json()
    assert (beyond[member], beyond["next"]) == ([], None)
    others = whole.keys() - {member, "total", "next"}
    assert {key: beyond[key] for key in others} == {key: whole[key] for key in others}


def test_pages_of_tasks_keep_the_filter_and_the_prefix(start: Start) -> None:
    client = start(root_path="/models")
    assert client.get("/models/tasks?limit=1&q=toy").json()["next"] == (
        "/models/tasks?limit=1&offset=1&q=toy"
    )


@pytest.mark.parametrize("path", ["/tasks", "/benchmark"])
def test_a_bad_page_of_tasks_is_named(
    client: TestClient, check_error: CheckError, path: str
) -> None:
    error = check_error(client.get(f"{path}?limit=0"), 422, "invalid_input")
    assert error["details"][0]["field"] == "limit"


NUM_TASKS = 10_000
NUM_REFUSED = 12_000
MAX_METRICS_BYTES = 1_000_000
MAX_PAGE_BYTES = 1_500_000


@pytest.fixture(scope="module")
def crowded(
    make_delta: Callable[..., Any],
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TestClient]:
    """A server of 10,000 tasks, beside 12,000 files that it refuses."""
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # to wait for the disk takes most of the time
        for number in range(NUM_TASKS):
            task = toy_tasks["toy2"].model_copy(update={"name": f"task-number-{number}"})
            path = delta_path(folder / "good", tiny_backbone.ref.id, task.name, "head")
            write_delta(make_delta(tiny_backbone, task, "head"), path)
    (folder / "bad").mkdir()
    for number in range(NUM_REFUSED):
        (folder / "bad" / f"{number}.safetensors").write_bytes(b"no delta")
    settings = Settings(
        deltas=(folder / "good", folder / "bad"),
        zoo=False,
        device="cpu",
        precision="fp32",
        warm_up=False,
    )
    with TestClient(create_app(settings, backbone=tiny_backbone)) as client:
        yield client


@pytest.mark.slow
def test_ten_thousand_tasks_do_not_grow_the_metrics(crowded: TestClient) -> None:
    for start in range(0, NUM_TASKS, 250):
        targets = [{"task": f"task-number-{number}"} for number in range(start, start + 250)]
        body = {"inputs": "a good film", "targets": targets}
        assert crowded.post("/predict", json=body).status_code == 200
    for _ in range(2):
        began = time.perf_counter()
        text = crowded.get("/metrics").text
        seconds = time.perf_counter() - began
    assert len(text) < MAX_METRICS_BYTES
    rows = [line for line in text.splitlines() if line.startswith("deltabert_rows_total{")]
    assert len(rows) == 101
    assert sum(float(line.split()[-1]) for line in rows) == NUM_TASKS
    print(f"{len(text):,} bytes in {1000 * seconds:.1f} ms")  # noqa: T201 - shown by pytest -s


@pytest.mark.slow
def test_ten_thousand_tasks_do_not_grow_a_page(crowded: TestClient) -> None:
    first = crowded.get("/deltas")
    assert len(first.content) < MAX_PAGE_BYTES
    assert first.json()["total"] == NUM_TASKS + NUM_REFUSED
    refused = crowded.get("/deltas?status=refused")
    assert len(refused.content) < MAX_PAGE_BYTES
    assert refused.json()["total"] == NUM_REFUSED
    began = time.perf_counter()
    found = crowded.get("/deltas?q=number-9999")
    print(f"{1000 * (time.perf_counter() - began):.1f} ms for a search")  # noqa: T201
    assert found.json()["total"] == 1
    pages = list(walk(crowded, "/deltas?limit=1000"))
    assert len({json.dumps(each) for page in pages for each in page["deltas"]}) == NUM_TASKS
    assert sum(len(page["rejected"]) for page in pages) == NUM_REFUSED
