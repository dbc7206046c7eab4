"""Deltas that are added, replaced, rolled back and removed over HTTP while the server answers."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deltas import Backbone, Store, delta_path, read_manifest, write_delta
from deltas.store.files import kept_path
from tests.factories import TOY_TASKS, make_delta
from tests.http.admin_key import ADMIN, KEY, KEYS

Start = Callable[..., TestClient]
CheckError = Callable[..., dict[str, Any]]
URL = "/deltas/toy2/head"
ROW = {"inputs": "a good film", "strategy": "head"}


@pytest.fixture
def content(tiny_backbone: Backbone, tmp_path: Path) -> Callable[..., bytes]:
    """A function (seed, task, strategy) -> the bytes of a delta's file."""

    def make(seed: int, task: str = "toy2", strategy: str = "head") -> bytes:
        path = tmp_path / "made" / f"{task}-{seed}.safetensors"
        write_delta(make_delta(tiny_backbone, TOY_TASKS[task], strategy, seed), path)
        return path.read_bytes()

    return make


@pytest.fixture
def server(start: Start, folder: Path, tiny_deltas: Path) -> TestClient:
    """A server with an admin; the tiny deltas lie in a folder that it only reads."""
    server = start(deltas=(folder, tiny_deltas), keys=KEYS, keep_versions=3)
    server.headers.update(ADMIN)
    return server


def put(server: TestClient, content: bytes, url: str = URL) -> str:
    answer = server.put(url, content=content)
    assert answer.status_code == 200, answer.text
    version: str = answer.json()["version"]
    return version


def predict(server: TestClient, **changes: Any) -> tuple[str, Any]:
    answer = server.post("/predict/toy2", json=ROW | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], answer.json()["predictions"][0]["scores"]


def test_a_new_version_answers_as_soon_as_it_is_acknowledged(
    server: TestClient, content: Callable[..., bytes], folder: Path, tiny_backbone: Backbone
) -> None:
    old, scores = predict(server)
    answer = server.put(URL, content=content(1)).json()
    assert answer == {
        "task": "toy2",
        "strategy": "head",
        "version": answer["version"],
        "previous": old,
        "versions": [answer["version"], old],
    }
    new, others = predict(server)
    assert new == answer["version"] != old
    assert others != scores
    assert predict(server, version=old) == (old, scores)
    path = delta_path(folder, tiny_backbone.ref.id, "toy2", "head")
    assert read_manifest(path)[1] == read_manifest(kept_path(path, new))[1] == new


def test_a_new_task_appears_everywhere(
    start: Start, content: Callable[..., bytes], folder: Path
) -> None:
    server = start(deltas=(folder,), keys=KEYS)
    server.headers.update(ADMIN)
    assert server.get("/health/ready").status_code == 503
    assert server.post("/predict/toy2", json=ROW).status_code == 404
    version = put(server, content(1))
    assert predict(server)[0] == version
    assert server.get("/").json()["tasks"] == ["toy2"]
    assert [task["task"] for task in server.get("/tasks").json()["tasks"]] == ["toy2"]
    (delta,) = server.get("/deltas").json()["deltas"]
    assert (delta["version"], delta["is_default"]) == (version, True)
    assert server.get(URL).json()["version"] == version
    assert [row["version"] for row in server.get("/benchmark").json()["rows"]] == [version]
    assert "deltabert_deltas 1.0" in server.get("/metrics").text
    assert server.get("/health/ready").status_code == 200


def test_the_same_file_again_changes_nothing(
    server: TestClient, content: Callable[..., bytes]
) -> None:
    version = put(server, content(1))
    again = server.put(URL, content=content(1)).json()
    assert (again["version"], again["previous"]) == (version, version)


def test_versions_are_kept_rolled_back_and_pruned(
    server: TestClient, content: Callable[..., bytes], folder: Path
) -> None:
    _, second, third, fourth = (put(server, content(seed)) for seed in (1, 2, 3, 4))
    answer = server.get("/deltas").json()["deltas"]
    served = [d["version"] for d in answer if (d["task"], d["strategy"]) == ("toy2", "head")]
    assert (served[0], served[2:]) == (fourth, [third, second]), "another folder is between"
    assert len(list(folder.rglob("*@*"))) == 3
    assert server.post(f"{URL}/rollback").json()["version"] == third
    assert server.post(f"{URL}/rollback").json()["version"] == second
    assert predict(server)[0] == second
    named = server.post(f"{URL}/rollback", json={"version": fourth}).json()
    assert (named["version"], named["previous"]) == (fourth, second)
    assert predict(server)[0] == fourth


def test_nothing_to_roll_back_to(
    server: TestClient, content: Callable[..., bytes], check_error: CheckError
) -> None:
    known = predict(server)[0]
    check_error(server.post(f"{URL}/rollback"), 409, "conflict")
    put(server, content(1))
    error = check_error(server.post(f"{URL}/rollback"), 409, "conflict")
    assert "older than the default" in error["message"]
    error = check_error(server.post(f"{URL}/rollback", json={"version": known}), 409, "conflict")
    assert "publish its file again" in error["message"]
    unknown = server.post(f"{URL}/rollback", json={"version": "0" * 16})
    check_error(unknown, 404, "not_found")
    check_error(server.post("/deltas/toy2/none/rollback"), 404, "not_found")


def test_a_removed_delta_gives_way_to_one_that_is_only_read(
    server: TestClient, content: Callable[..., bytes], folder: Path, check_error: CheckError
) -> None:
    known = predict(server)[0]
    first, second = put(server, content(1)), put(server, content(2))
    error = check_error(server.delete(f"{URL}?version={second}"), 409, "conflict")
    assert "is the default of toy2/head" in error["message"]
    assert server.delete(f"{URL}?version={first}").json()["versions"] == [second, known]
    check_error(server.delete(f"{URL}?version={first}"), 404, "not_found")
    gone = server.delete(URL).json()
    assert (gone["version"], gone["previous"]) == (known, second)
    assert predict(server)[0] == known
    assert not list(folder.rglob("*.safetensors"))
    error = check_error(server.delete(URL), 409, "conflict")
    assert "only reads" in error["message"]
    check_error(server.delete("/deltas/toy2/none"), 404, "not_found")


def test_a_removed_task_is_gone(
    server: TestClient, content: Callable[..., bytes], check_error: CheckError
) -> None:
    url = "/deltas/toy2/random:0.1"
    put(server, content(1, "toy2", "random:0.1"), url)
    assert predict(server, strategy="random:0.1")
    assert server.delete(url).json()["versions"] == []
    answer = server.post("/predict/toy2", json=ROW | {"strategy": "random:0.1"})
    check_error(answer, 404, "not_found")


def test_bad_uploads_change_nothing(
    server: TestClient,
    content: Callable[..., bytes],
    folder: Path,
    tmp_path: Path,
    check_error: CheckError,
) -> None:
    version = put(server, content(1))
    good = content(2)
    flipped = bytearray(good)
    flipped[-3] ^= 1
    for bad, reason in (
        (b"", "no readable"),
        (b"garbage" * 99, ""),
        (good[:-1], "cut off"),
        (bytes(flipped), "the file is damaged"),
        (content(2, "toy3"), "it is the delta toy3/head, not toy2/head"),
        (content(2, "toy2", "top:1"), "it is the delta toy2/top:1, not toy2/head"),
    ):
        error = check_error(server.put(URL, content=bad), 422, "invalid_delta")
        assert reason.replace("no readable", "not a readable") in error["message"]
        assert str(tmp_path) not in error["message"]
        assert "upload" not in error["message"]
    assert predict(server)[0] == version
    assert len(list(folder.rglob("*.*"))) == 2, "no upload is left"


def test_a_delta_that_answers_nan_is_refused(
    server: TestClient, tiny_backbone: Backbone, tmp_path: Path, check_error: CheckError
) -> None:
    delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", 1)
    delta.head_weight.fill_(3e38)
    write_delta(delta, tmp_path / "huge.safetensors")
    answer = server.put(URL, content=(tmp_path / "huge.safetensors").read_bytes())
    assert "NaN or infinite" in check_error(answer, 422, "invalid_delta")["message"]


def test_a_large_file_is_refused(start: Start, folder: Path, check_error: CheckError) -> None:
    server = start(deltas=(folder,), keys=KEYS, max_delta_bytes=2000)
    error = check_error(server.put(URL, content=b"x" * 2001, headers=ADMIN), 413, "too_large")
    assert "DELTABERT_MAX_DELTA_BYTES" in error["message"]
    parts = (b"x" * 999 for _ in range(4))
    check_error(server.put(URL, content=parts, headers=ADMIN), 413, "too_large")
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("PUT", URL),
        ("DELETE", URL),
        ("POST", f"{URL}/rollback"),
        ("POST", "/deltas/reload"),
    ],
)
def test_changes_need_the_key(
    server: TestClient, client: TestClient, check_error: CheckError, method: str, url: str
) -> None:
    before = server.get("/deltas").text
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        server.headers.pop("Authorization", None)
        answer = server.request(method, url, headers=given)
        check_error(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    check_error(client.request(method, url, headers=ADMIN), 403, "forbidden")
    assert server.get("/deltas").text == before


def test_the_routes_are_documented_where_they_are_on(
    server: TestClient, client: TestClient
) -> None:
    document = server.get("/openapi.json").json()
    assert "/deltas/reload" not in client.get("/openapi.json").json()["paths"]
    body = document["paths"]["/deltas/{task}/{strategy}"]["put"]["requestBody"]["content"]
    assert body["application/octet-stream"]["schema"]["format"] == "binary"
    for path in ("/deltas/reload", "/deltas/{task}/{strategy}/rollback", URL.replace("toy2", "x")):
        for operation in document["paths"].get(path, {}).values():
            assert {"401", "403", "409"} <= set(operation["responses"])
    page = server.get("/docs").text.replace("&quot;", '"')
    for option in ("-T FILE", "-X DELETE", "-X POST"):
        assert f"curl -s {option} " in page
    assert '-H "Authorization: Bearer $KEY"' in page


def test_a_key_of_the_scope_admin_may_change(
    start: Start, content: Callable[..., bytes], folder: Path, check_error: CheckError
) -> None:
    scopes = {"admin": KEY, "predict": f"{KEY}!"}
    keys = "".join(
        f'{scope} = {{sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}", '
        f'scopes = ["{scope}"], tasks = ["*"]}}\n'
        for scope, secret in scopes.items()
    )
    server = start(deltas=(folder,), keys=keys)
    admin, other = ({"Authorization": f"Bearer {secret}"} for secret in scopes.values())
    for method, url in (("PUT", URL), ("GET", "/traffic/toy2/head"), ("POST", "/deltas/reload")):
        error = check_error(server.request(method, url, headers=other), 403, "forbidden")
        assert "lacks the scope 'admin'" in error["message"]
    assert server.put(URL, content=content(1), headers=admin).status_code == 200
    assert server.post("/predict/toy2", json=ROW, headers=other).status_code == 200


def test_without_a_folder_there_is_nothing_to_change(start: Start, check_error: CheckError) -> None:
    server = start(deltas=(), keys=KEYS)
    error = check_error(server.put(URL, content=b"x", headers=ADMIN), 409, "conflict")
    assert "DELTABERT_DELTAS" in error["message"]


def test_a_folder_that_cannot_be_written(
    server: TestClient, folder: Path, content: Callable[..., bytes], check_error: CheckError
) -> None:
    folder.rmdir()
    error = check_error(server.put(URL, content=content(1)), 503, "storage_failed")
    assert str(folder) not in error["message"]


def test_reload_finds_new_replaced_and_removed_files(
    server: TestClient, folder: Path, content: Callable[..., bytes]
) -> None:
    assert server.post("/deltas/reload").json()["num_changed"] == 0
    known = predict(server)[0]
    (folder / "mine.safetensors").write_bytes(content(1))
    answer = server.post("/deltas/reload").json()
    assert (answer["changed"], answer["num_rejected"]) == (["toy2/head"], 0)
    mine = predict(server)[0]
    assert mine != known
    (folder / "mine.safetensors").write_bytes(content(2))
    assert predict(server)[0] == mine, "in memory"
    server.post("/deltas/reload")
    assert predict(server)[0] not in (mine, known)
    (folder / "mine.safetensors").unlink()
    server.post("/deltas/reload")
    assert predict(server)[0] == known


def test_a_bad_file_leaves_the_last_good_version(
    server: TestClient, folder: Path, content: Callable[..., bytes]
) -> None:
    path = folder / "mine.safetensors"
    path.write_bytes(content(1))
    server.post("/deltas/reload")
    good, scores = predict(server)
    damaged = bytearray(content(2))
    damaged[-3] ^= 1
    for bad in (b"half", bytes(damaged)):
        path.write_bytes(bad)
        answer = server.post("/deltas/reload").json()
        assert answer["num_rejected"] == 1
        (rejected,) = server.get("/deltas").json()["rejected"]
        assert rejected["file"] == "mine.safetensors"
        assert rejected["reason"].endswith(f"; version {good} goes on")
        assert predict(server) == (good, scores)
    path.write_bytes(content(2))
    server.post("/deltas/reload")
    assert predict(server)[0] != good
    assert server.get("/deltas").json()["rejected"] == []


def test_answers_are_whole_while_a_delta_is_replaced(
    server: TestClient, content: Callable[..., bytes]
) -> None:
    """Many clients ask while another one publishes; each answer is that of its version."""
    contents = [content(seed) for seed in (1, 2)]
    expected = {put(server, each): predict(server)[1] for each in contents}

    def ask(_: int) -> tuple[str, Any]:
        return predict(server)

    with ThreadPoolExecutor(8) as threads:
        asked = threads.map(ask, range(200))
        for number in range(20):
            version = put(server, contents[number % 2])
            assert predict(server)[0] == version
        answers = list(asked)
    for version, scores in answers:
        assert scores == pytest.approx(expected[version], abs=1e-5)
    assert {version for version, _ in answers} == set(expected)


def test_after_a_rollback_the_next_one_returns_to_what_was_served(
    server: TestClient, content: Callable[..., bytes]
) -> None:
    first, second = put(server, content(1)), put(server, content(2))
    assert server.post(f"{URL}/rollback").json()["version"] == first
    put(server, content(3))
    assert server.post(f"{URL}/rollback").json()["version"] == first, f"not {second}"


def test_a_file_that_is_gone_fails_in_time_while_changes_take_long(
    start: Start, content: Callable[..., bytes], folder: Path, check_error: CheckError
) -> None:
    for strategy in ("head", "bitfit"):
        (folder / f"{strategy}.safetensors").write_bytes(content(1, "toy2", strategy))
    server = start(deltas=(folder,), max_slots=1)
    predict(server, strategy="bitfit")
    (folder / "head.safetensors").unlink()
    changes = server.app.state.serving.changes  # type: ignore[attr-defined]
    assert server.portal is not None
    server.portal.call(changes._lock.acquire)
    answer = server.post("/predict/toy2", json=ROW, headers={"X-Request-Timeout-Ms": "500"})
    check_error(answer, 503, "delta_unavailable")
    server.portal.call(changes._lock.release)


def test_two_servers_over_one_folder_take_turns(
    start: Start, content: Callable[..., bytes], folder: Path, tiny_backbone: Backbone
) -> None:
    servers = [start(deltas=(folder,), keys=KEYS, keep_versions=2) for _ in range(2)]
    contents = [content(seed) for seed in range(4)]

    def work(server: TestClient) -> list[str]:
        made = []
        for number in range(12):
            made.append(put(server, contents[number % 4]))
            assert server.post("/predict/toy2", json=ROW).status_code == 200
            if number % 5 == 4:
                assert server.delete(URL).status_code in (200, 404)
        return made

    for server in servers:
        server.headers.update(ADMIN)
        put(server, contents[0])
    with ThreadPoolExecutor(2) as threads:
        last = {made[-1] for made in threads.map(work, servers)}
    store = Store([folder], backbone=tiny_backbone.ref)
    found = store.versions("toy2", "head")
    assert store.rejected == []
    assert found[0].version in last
    assert len(found) <= 2
    assert not list(folder.glob(".*")), "neither lock nor upload is left"
    for server in servers:
        server.post("/deltas/reload")
        assert predict(server)[0] == found[0].version


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        (
            {"Content-Type": "application/x-www-form-urlencoded"},
            415,
            "send the header Content-Type",
        ),
        ({"Content-Type": "text/plain"}, 415, "Content-Type is 'text/plain'"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415, "uncompressed"),
        ({"Content-Type": "application/json"}, 404, "unknown version 'x'"),
    ],
)
def test_the_body_of_a_change_has_the_types_of_all_others(
    server: TestClient, content: Callable[..., bytes], headers: Any, status: int, says: str
) -> None:
    put(server, content(1))
    answer = server.post(f"{URL}/rollback", content=b'{"version": "x"}', headers=headers)
    assert (answer.status_code, says in answer.text) == (status, True), answer.text


def test_a_compressed_file_is_called_so(
    server: TestClient, content: Callable[..., bytes], check_error: CheckError
) -> None:
    packed = gzip.compress(content(1))
    answer = server.put(URL, content=packed, headers={"Content-Encoding": "gzip"})
    assert "'gzip' is not supported" in check_error(answer, 415, "unsupported_body")["message"]


def test_a_full_disk_is_one_line_of_the_log(
    server: TestClient,
    content: Callable[..., bytes],
    check_error: CheckError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deltas.store.versions.new_upload", fail)
    error = check_error(server.put(URL, content=content(1)), 503, "storage_failed")
    assert "No space left on device" in error["message"]
    assert not [record for record in caplog.records if record.exc_info]
