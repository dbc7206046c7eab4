"""Changes of a real server: under load, and killed at any moment.

No request fails under load, each answer is of the version that it names, and no request that began
after an acknowledgement is answered by an earlier version. After a kill the next start has whole
versions: what was acknowledged is there, and the change under way has happened or has not.
`KILL_MOMENTS=50` kills a server at more moments. After each step of a change alone, the test of
`deltas.store.versions` ends the process.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, Store, write_delta
from tests.factories import TOY_TASKS, make_delta
from tests.http.admin_key import ADMIN, KEYS
from tests.http.server_process import Server, call, opener, url_of

NAMES = [("toy2", "head"), ("toy2", "random:0.05"), ("toy3", "bitfit")]
MOMENTS = int(os.environ.get("KILL_MOMENTS", "4"))
LONGEST_S = 0.4  # of changes before a kill; each takes about 20 ms


@dataclass
class Client:
    """An admin who changes deltas at random, and remembers what was acknowledged."""

    url: str
    contents: dict[tuple[str, str], dict[str, bytes]]  # by name and version
    chance: random.Random
    default: dict[tuple[str, str], str | None]
    kept: dict[tuple[str, str], list[str]]
    under_way: tuple[tuple[str, str], str | None] | None = None
    num_acknowledged: int = 0
    problems: list[str] = field(default_factory=list)

    def work(self) -> None:
        """Change deltas until the server is gone."""
        try:
            while True:
                self._change(self.chance.choice(NAMES))
        except OSError:
            pass
        except Exception as error:  # noqa: BLE001 - the test reports it
            self.problems.append(repr(error))

    def _change(self, name: tuple[str, str]) -> None:
        path = f"/deltas/{name[0]}/{name[1]}"
        older = self.kept[name][1:]
        kind = self.chance.choice(["put", "put", "delete", "rollback"])
        if kind == "put":
            version = self.chance.choice(list(self.contents[name]))
            self.under_way = name, version
            answer = send(self.url + path, "PUT", self.contents[name][version])
        elif kind == "rollback" and older:
            version = self.chance.choice(older)
            self.under_way = name, version
            body = json.dumps({"version": version}).encode()
            answer = send(f"{self.url}{path}/rollback", "POST", body)
        elif kind == "delete" and self.default[name]:
            self.under_way = name, None
            answer = send(self.url + path, "DELETE")
        else:
            return
        self.default[name], self.kept[name] = answer["version"], answer["versions"]
        self.under_way = None
        self.num_acknowledged += 1


def send(url: str, method: str, content: bytes | None = None) -> Any:
    headers = ADMIN | {"Content-Type": "application/json"}
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with opener.open(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.read().decode()}") from None


def versions_of(
    name: tuple[str, str], count: int, backbone: Backbone, folder: Path
) -> dict[str, bytes]:
    """Files of a delta, by their version."""
    made = {}
    for seed in range(count):
        path = folder / f"{seed}.safetensors"
        delta = write_delta(make_delta(backbone, TOY_TASKS[name[0]], name[1], seed), path)
        made[delta.version] = path.read_bytes()
    return made


@pytest.fixture
def contents(tiny_backbone: Backbone, tmp_path: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """Three versions of each delta."""
    return {name: versions_of(name, 3, tiny_backbone, tmp_path / "made") for name in NAMES}


def defaults(folder: Path, backbone: Backbone) -> tuple[Store, dict[tuple[str, str], str | None]]:
    """Read the folder as a server does at its start, and every file in it."""
    store = Store([folder], backbone=backbone.ref)
    for record in store.records:
        record.load()
    reasons = {reason.split(" beside ")[0] for _, reason in store.rejected}
    assert reasons <= {"kept"}, store.rejected  # left behind by a removal
    found = {name: store.versions(*name) for name in NAMES}
    return store, {name: ranked[0].version if ranked else None for name, ranked in found.items()}


def check_answers(url: str, store: Store) -> None:
    """Ask the restarted server by every version that its folder has."""
    for record in store.records:
        task, strategy, version = record.key
        fields = TOY_TASKS[task].text_fields
        inputs = dict(zip(fields, ("a good film", "not bad"), strict=False))
        body = {"inputs": inputs, "strategy": strategy}
        body |= {} if record.is_default else {"version": version}
        status, answer = call(f"{url}/predict/{task}", body)
        assert (status, answer.get("version")) == (200, version), answer


@pytest.mark.slow
def test_a_server_that_is_killed_at_any_moment_has_whole_versions(
    run_server: Callable[..., Any],
    contents: dict[tuple[str, str], dict[str, bytes]],
    tiny_backbone: Backbone,
    folder: Path,
) -> None:
    chance = random.Random(5)
    total = interrupted = 0
    found: dict[tuple[str, str], str | None] = dict.fromkeys(NAMES)
    store, _ = defaults(folder, tiny_backbone)
    for moment in range(MOMENTS):
        environment = {"DELTABERT_DELTAS": str(folder), "DELTABERT_KEYS": KEYS}
        with run_server(**environment) as server:
            url = url_of(server)
            check_answers(url, store)
            kept = {n: [r.version for r in store.versions(*n)] for n in NAMES}
            client = Client(url, contents, chance, dict(found), kept)
            kill_after(server, client, chance.uniform(0.02, LONGEST_S))
        assert not client.problems, client.problems
        store, found = defaults(folder, tiny_backbone)
        for name in NAMES:
            allowed = {client.default[name]}
            if client.under_way and client.under_way[0] == name:
                allowed.add(client.under_way[1])
                interrupted += 1
            assert found[name] in allowed, (moment, name, client.under_way)
        total += client.num_acknowledged
    assert total > MOMENTS
    assert interrupted > MOMENTS / 2


def kill_after(server: Server, client: Client, seconds: float) -> None:
    thread = threading.Thread(target=client.work)
    thread.start()
    time.sleep(seconds)
    server.process.kill()
    thread.join(60)
    assert not thread.is_alive()


CLIENTS, CHANGES = 64, 30


@pytest.mark.slow
def test_a_delta_that_is_replaced_under_load_answers_every_request(
    run_server: Callable[..., Any], tiny_backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    contents = versions_of(NAMES[0], CHANGES, tiny_backbone, tmp_path / "made")
    environment = {"DELTABERT_DELTAS": str(folder), "DELTABERT_KEYS": KEYS}
    settings = {"DELTABERT_MAX_SLOTS": "2", "DELTABERT_KEEP_VERSIONS": "1"}
    body = {"inputs": "a good film", "strategy": NAMES[0][1]}
    num_acknowledged, done = 0, threading.Event()
    answers: list[tuple[int, int, dict[str, Any], int]] = []

    with run_server(**environment, **settings) as server:
        url = url_of(server)

        def publish(version: str) -> None:
            send(f"{url}/deltas/{'/'.join(NAMES[0])}", "PUT", contents[version])

        def predict() -> tuple[int, Any]:
            return call(f"{url}/predict/{NAMES[0][0]}", body)

        def ask() -> None:
            while not done.is_set():
                answers.append((num_acknowledged, *predict(), num_acknowledged))

        alone = {}
        for version in contents:
            publish(version)
            alone[version] = predict()[1]["predictions"][0]["scores"]
        clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for version in contents:
            publish(version)
            num_acknowledged += 1
        done.set()
        for client in clients:
            client.join(60)
    assert {status for _, status, _, _ in answers} == {200}
    assert len(answers) > 3 * CLIENTS
    check_under_load(answers, alone)


def check_under_load(
    answers: list[tuple[int, int, dict[str, Any], int]], alone: dict[str, Any]
) -> None:
    """Compare answers with those alone, and their versions with the acknowledged changes."""
    number_of = {version: number for number, version in enumerate(alone, 1)}
    for before, _, answer, after in answers:
        scores = answer["predictions"][0]["scores"]
        assert scores == pytest.approx(alone[answer["version"]], abs=1e-5), "versions are mixed"
        number = number_of[answer["version"]]
        if not before:
            number %= CHANGES  # the last one answers before the first change, too
        # The change after the acknowledged ones may be under way.
        assert before <= number <= after + 1, "an answer of an earlier version"
