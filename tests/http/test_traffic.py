"""Versions that share the traffic of a delta: split, sticky, shadowed, and kept as files."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deltas import Backbone, delta_path, write_delta
from deltas.store.traffic import traffic_path
from tests.factories import TOY_TASKS, make_delta
from tests.http.admin_key import ADMIN, KEYS

Start = Callable[..., TestClient]
CheckError = Callable[..., dict[str, Any]]
DELTA, URL = "/deltas/toy2/head", "/traffic/toy2/head"
ROW = {"inputs": "a good film", "strategy": "head"}
WITHIN_S = 20.0


@pytest.fixture
def start_admin(start: Start, folder: Path) -> Callable[[], TestClient]:
    """A function that starts a server over the folder; its client has the admin's key."""

    def start_one() -> TestClient:
        server = start(deltas=(folder,), keys=KEYS, keep_versions=2)
        server.headers.update(ADMIN)
        return server

    return start_one


@pytest.fixture
def server(start_admin: Callable[[], TestClient]) -> TestClient:
    return start_admin()


@pytest.fixture
def versions(server: TestClient, tiny_backbone: Backbone, tmp_path: Path) -> tuple[str, str]:
    """Two published versions of toy2/head; the second one is the default."""
    found = []
    for seed in (1, 2):
        path = tmp_path / "made.safetensors"
        write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", seed), path)
        found.append(server.put(DELTA, content=path.read_bytes()).json()["version"])
    return found[0], found[1]


def version(server: TestClient, key: str | None = None, **changes: Any) -> str:
    headers = {} if key is None else {"X-Sticky-Key": key}
    answer = server.post("/predict/toy2", json=ROW | changes, headers=headers)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["version"]
    return found


def shadow_rows(server: TestClient) -> dict[str, float]:
    found = re.findall(
        r'deltabert_shadow_rows_total\{result="(\w+)",strategy="head",task="toy2"\} ([\d.]+)',
        server.get("/metrics").text,
    )
    return {result: float(number) for result, number in found}


def test_a_split_sends_its_share_to_a_version(
    server: TestClient, versions: tuple[str, str]
) -> None:
    other, default = versions
    rule = {"split": {"version": other, "share": 0.3}, "shadow": None}
    assert server.put(URL, json=rule).json() == rule
    assert server.get(URL).json() == rule
    counts = Counter(version(server) for _ in range(300))
    assert set(counts) == {other, default}
    assert 0.15 < counts[other] / 300 < 0.45  # five standard deviations
    by_key = {f"user {n}": version(server, f"user {n}") for n in range(100)}
    assert by_key == {key: version(server, key) for key in by_key}, "sticky"
    assert 10 < Counter(by_key.values())[other] < 55
    server.put(URL, json={"split": {"version": other, "share": 0.6}})
    for key, before in by_key.items():
        assert version(server, key) == other or before == default, "keys move one way"
    assert version(server, "user 1", version=default) == default, "named versions bypass it"


def test_a_share_of_none_and_of_all(server: TestClient, versions: tuple[str, str]) -> None:
    other, default = versions
    for share, expected in ((0, default), (1, other)):
        server.put(URL, json={"split": {"version": other, "share": share}})
        assert {version(server, key) for key in (None, "a", "b", "c")} == {expected}
    assert server.delete(URL).json() == {"split": None, "shadow": None}
    assert version(server) == default


def test_a_fan_out_is_split_by_target(server: TestClient, versions: tuple[str, str]) -> None:
    other, default = versions
    server.put(URL, json={"split": {"version": other, "share": 1}})
    target = {"task": "toy2", "strategy": "head"}
    body = {"inputs": "a film", "targets": [target, {**target, "version": default}]}
    results = server.post("/predict", json=body).json()["results"]
    assert [result["version"] for result in results] == [other, default]


def test_a_shadow_sees_the_rows_and_is_counted(
    server: TestClient, versions: tuple[str, str]
) -> None:
    other, default = versions
    server.put(URL, json={"shadow": {"version": other}})
    rows = [f"film number {n}" for n in range(40)]
    body = ROW | {"inputs": rows}
    expected = Counter(
        one["decision"] == two["decision"]
        for one, two in zip(
            server.post("/predict/toy2", json=body | {"version": other}).json()["predictions"],
            server.post("/predict/toy2", json=body | {"version": default}).json()["predictions"],
            strict=True,
        )
    )
    assert shadow_rows(server) == {}, "named versions have no shadow"
    assert server.post("/predict/toy2", json=body).json()["version"] == default
    deadline = time.monotonic() + WITHIN_S
    while sum((found := shadow_rows(server)).values()) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found == {
        name: count
        for name, count in (("same", expected[True]), ("different", expected[False]))
        if count
    }


def test_a_shadow_is_dropped_first_under_load(
    server: TestClient, versions: tuple[str, str], gate: Any
) -> None:
    """While a batch runs and rows wait, answers come and shadows are skipped."""
    other, default = versions
    server.put(URL, json={"shadow": {"version": other}})
    serving = server.app.state.serving  # type: ignore[attr-defined]
    serving.shadow._running.update({1, 2})  # as many as may run at a time
    assert version(server) == default
    assert shadow_rows(server) == {"skipped": 1.0}


def test_rules_survive_a_restart(
    server: TestClient,
    versions: tuple[str, str],
    start_admin: Callable[[], TestClient],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rule = {"split": {"version": versions[0], "share": 1.0}, "shadow": None}
    server.put(URL, json=rule)
    again = start_admin()
    assert again.get(URL).json() == rule
    assert version(again) == versions[0]
    (path,) = folder.rglob("*.traffic.json")
    assert path.name == "head.traffic.json"
    assert json.loads(path.read_text())["task"] == "toy2"
    path.with_name("bitfit.traffic.json").write_text(path.read_text())
    path.write_text("{")
    bad = start_admin()
    assert version(bad) == versions[1]
    assert sum("not used" in record.getMessage() for record in caplog.records) == 2


def test_versions_with_traffic_stay(
    server: TestClient,
    versions: tuple[str, str],
    tiny_backbone: Backbone,
    tmp_path: Path,
    check_error: CheckError,
) -> None:
    other, default = versions
    server.put(URL, json={"shadow": {"version": other}})
    error = check_error(server.delete(f"{DELTA}?version={other}"), 409, "conflict")
    assert "/traffic/toy2/head" in error["message"]
    check_error(server.delete(DELTA), 409, "conflict")
    path = tmp_path / "made.safetensors"
    write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", 3), path)
    kept = server.put(DELTA, content=path.read_bytes()).json()["versions"]
    assert other in kept
    assert default not in kept
    server.delete(URL)
    assert server.delete(DELTA).json()["versions"] == []


@pytest.mark.parametrize(
    ("url", "body", "status", "code"),
    [
        (URL, {"split": {"version": "0" * 16, "share": 0.5}}, 404, "not_found"),
        ("/traffic/toy2/none", {"shadow": {"version": "0" * 16}}, 404, "not_found"),
        ("/traffic/none/head", {}, 404, "not_found"),
        (URL, {"split": {"version": "x", "share": 1.5}}, 422, "invalid_input"),
        (URL, {"split": {"version": "x"}}, 422, "invalid_input"),
        (URL, {"splits": None}, 422, "invalid_input"),
        (URL, [], 422, "invalid_input"),
    ],
)
def test_bad_rules(
    server: TestClient,
    versions: tuple[str, str],
    folder: Path,
    check_error: CheckError,
    url: str,
    body: Any,
    status: int,
    code: str,
) -> None:
    check_error(server.put(url, json=body), status, code)
    assert not list(folder.rglob("*.traffic.json"))
    assert version(server) == versions[1]


def test_rules_need_the_key(server: TestClient, check_error: CheckError) -> None:
    del server.headers["Authorization"]
    for method in ("GET", "PUT", "DELETE"):
        check_error(server.request(method, URL, json={}), 401, "unauthorized")


def test_a_damaged_rule_leaves_the_last_good_one(
    server: TestClient, versions: tuple[str, str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, _ = versions
    rule = {"split": {"version": other, "share": 1.0}, "shadow": None}
    server.put(URL, json=rule)
    (path,) = folder.rglob("*.traffic.json")
    good, bad = path.read_text(), '{"task": "toy2", "strategy": "head", "split": {"share": 2}}'
    for content, rejected in (("{", 1), (bad, 1), (good, 0)):
        path.write_text(content)
        for _ in range(2):
            assert server.post("/deltas/reload").json()["num_rejected_rules"] == rejected
        assert server.get(URL).json() == rule
        assert version(server) == other
        assert path.read_text() == content, "the file is left as it is"
        gauge = f'deltabert_stale_files{{file="traffic"}} {rejected}.0'
        assert gauge in server.get("/metrics").text
    said = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert len(said) == 2, "once for each content"
    assert all(line.endswith("the previous rule stays in use") for line in said)
    assert server.delete(f"{DELTA}?version={other}").status_code == 409
    path.unlink()
    server.post("/deltas/reload")
    assert version(server) == versions[1]


def test_a_rule_can_be_replaced_and_cleared_while_its_file_is_damaged(
    server: TestClient, versions: tuple[str, str], folder: Path
) -> None:
    rule = {"split": {"version": versions[0], "share": 1.0}, "shadow": None}
    server.put(URL, json=rule)
    (path,) = folder.rglob("*.traffic.json")
    for method in ("PUT", "DELETE"):
        path.write_text("damaged")
        assert server.post("/deltas/reload").json()["num_rejected_rules"] == 1
        assert server.request(method, URL, json=rule).status_code == 200
        assert server.post("/deltas/reload").json()["num_rejected_rules"] == 0
    assert not path.exists()


def test_rules_of_another_server_over_the_same_folder_count(
    server: TestClient,
    versions: tuple[str, str],
    start_admin: Callable[[], TestClient],
    tiny_backbone: Backbone,
    tmp_path: Path,
    check_error: CheckError,
) -> None:
    """The one server keeps the version that the other one's new rule needs, and the reverse."""
    other, default = versions
    second = start_admin()
    server.put(URL, json={"split": {"version": other, "share": 1.0}})
    path = tmp_path / "made.safetensors"
    write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", 3), path)
    kept = second.put(DELTA, content=path.read_bytes()).json()["versions"]
    assert other in kept
    assert default not in kept
    check_error(second.delete(f"{DELTA}?version={other}"), 409, "conflict")
    server.delete(URL)
    assert second.delete(f"{DELTA}?version={other}").status_code == 200
    unknown = server.put(URL, json={"split": {"version": other, "share": 1.0}})
    check_error(unknown, 404, "not_found")


def test_rules_of_a_folder_that_is_only_read_count_behind_the_others(
    server: TestClient, versions: tuple[str, str], start: Start, folder: Path, tmp_path: Path
) -> None:
    """So do the rules that come with the copy of a remote folder."""
    other, default = versions
    rule = {"split": {"version": other, "share": 1.0}, "shadow": None}
    server.put(URL, json=rule)
    (tmp_path / "first").mkdir()
    second = start(deltas=(tmp_path / "first", folder), keys=KEYS)
    second.headers.update(ADMIN)
    assert second.get(URL).json() == rule
    assert version(second) == other
    own = {"split": {"version": default, "share": 1.0}, "shadow": None}
    assert second.put(URL, json=own).json() == own
    assert version(second) == default
    assert second.delete(URL).json() == rule, "the rule of the folder that is only read"
    assert version(second) == other


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"splt": None}, "field 'splt' is not a field of this request"),
        ([], "the body must be a JSON object"),
        ({"split": 5}, "field 'split' must be a JSON object"),
    ],
)
def test_a_rule_of_another_form_is_named(
    server: TestClient, versions: tuple[str, str], check_error: CheckError, rule: Any, says: str
) -> None:
    error = check_error(server.put(URL, json=rule), 422, "invalid_input")
    assert says in error["message"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_rule_that_is_no_file_holds_no_change_up(
    server: TestClient,
    versions: tuple[str, str],
    folder: Path,
    tiny_backbone: Backbone,
    make: Callable[[Path], None],
) -> None:
    path = traffic_path(delta_path(folder, tiny_backbone.ref.id, "toy2", "head"))
    make(path)
    answers: list[int] = []

    def change() -> None:
        answers.append(server.post("/deltas/reload").json()["num_rejected_rules"])
        answers.append(server.post(f"{DELTA}/rollback").status_code)

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    thread.join(10)
    assert answers == [1, 200]
    assert version(server) == versions[0]
