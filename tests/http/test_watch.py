"""A watched folder: what is copied, renamed or removed there is served without a request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deltas import Backbone, delta_path, write_delta
from tests.factories import TOY_TASKS, make_delta

pytest.importorskip("watchfiles", reason="needs the extra watch")

Start = Callable[..., TestClient]
WITHIN_S = 20.0


@pytest.fixture
def server(start: Start, folder: Path) -> TestClient:
    server = start(deltas=(folder,), watch=True)
    time.sleep(0.3)  # until the system watches; there is no event for that
    return server


@pytest.fixture
def write(tiny_backbone: Backbone) -> Callable[..., str]:
    """A function (folder, seed) that writes toy2/head and returns its version."""

    def write_one(folder: Path, seed: int) -> str:
        path = delta_path(folder, tiny_backbone.ref.id, "toy2", "head")
        delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", seed)
        return write_delta(delta, path).version

    return write_one


def served(server: TestClient) -> list[str]:
    return [delta["version"] for delta in server.get("/deltas").json()["deltas"]]


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it was not noticed"
        time.sleep(0.05)
    return found


def test_files_that_come_change_and_go(
    server: TestClient, folder: Path, write: Callable[..., str]
) -> None:
    assert served(server) == []
    first = write(folder, 1)
    wait_for(lambda: served(server) == [first])
    second = write(folder, 2)
    wait_for(lambda: served(server) == [second])
    answer = server.post("/predict/toy2", json={"inputs": "a film"})
    assert answer.json()["version"] == second
    next(folder.rglob("*.safetensors")).unlink()
    wait_for(lambda: served(server) == [])


def test_a_whole_folder_that_is_moved_in_and_out(
    server: TestClient, folder: Path, tmp_path: Path, write: Callable[..., str]
) -> None:
    version = write(tmp_path / "elsewhere", 1)
    (made,) = (tmp_path / "elsewhere").iterdir()
    made.rename(folder / made.name)
    wait_for(lambda: served(server) == [version])
    shutil.rmtree(folder / made.name)
    wait_for(lambda: served(server) == [])


def test_a_file_that_is_copied_slowly_replaces_nothing_before_it_is_whole(
    server: TestClient, folder: Path, tmp_path: Path, write: Callable[..., str]
) -> None:
    first = write(folder, 1)
    wait_for(lambda: served(server) == [first])
    second = write(tmp_path / "elsewhere", 2)
    content = next((tmp_path / "elsewhere").rglob("*.safetensors")).read_bytes()
    path = next(folder.rglob("*.safetensors"))
    with path.open("wb") as file:  # as cp does
        file.write(content[: len(content) // 2])
        file.flush()
        wait_for(lambda: server.get("/deltas").json()["rejected"])
        assert served(server) == [first]
        assert server.post("/predict/toy2", json={"inputs": "a film"}).json()["version"] == first
        file.write(content[len(content) // 2 :])
    wait_for(lambda: served(server) == [second])
    assert server.get("/deltas").json()["rejected"] == []


def test_other_files_are_none_of_its_business(
    server: TestClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "card.md").write_text("x")
    (folder / ".hidden.safetensors").write_bytes(b"x")
    time.sleep(1)
    listed = server.get("/deltas").json()
    assert listed["deltas"] == listed["rejected"] == []
    assert not caplog.records
