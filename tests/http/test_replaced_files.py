"""Files of deltas that are replaced, deleted or slow to read while a server answers from them.

The tests have the numbers of the pitfalls that other servers of adapters fell into: stale weights
after a replacement (6), failures while one is replaced (7), loads that stop predictions (8), files
that vanish (10). What is promised stands in docs/guide/serving.md.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.engine.loader import Loader
from deltas import Backbone, Record, delta_path, write_delta
from deltas.encoder.bank import StagedDelta
from tests.factories import TOY_TASKS, make_delta

Start = Callable[..., TestClient]
TASKS, STRATEGIES = ("toy2", "toy3", "toy68"), ("bitfit", "random:0.05", "top:1")
PAIRS = [(task, strategy) for task in TASKS for strategy in STRATEGIES]
CLIENTS, REQUESTS = 4, 120
ROW = {"text": "a good film", "text_pair": "not very bad"}


@dataclass(frozen=True)
class Published:
    """One version of a delta: its file's bytes, and the answer of a server that has only it."""

    content: bytes
    version: str
    scores: list[float]


@dataclass(frozen=True)
class Shelf:
    """A folder that a server reads, with two versions of each of its deltas."""

    folder: Path
    paths: dict[tuple[str, str], Path]
    old: dict[tuple[str, str], Published]
    new: dict[tuple[str, str], Published]

    def publish(self, pair: tuple[str, str], published: Published) -> None:
        """Replace a file in one step, as `training.fit` does."""
        hidden = self.folder / f".{threading.get_ident()}.tmp"
        hidden.write_bytes(published.content)
        os.replace(hidden, self.paths[pair])  # noqa: PTH105


@pytest.fixture(scope="module")
def versions(
    make_app: Callable[..., FastAPI],
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[tuple[str, str], Published]]:
    """Two versions of each delta, the old ones first."""
    made = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("version")
        contents = {}
        for task, strategy in PAIRS:
            path = delta_path(folder, tiny_backbone.ref.id, task, strategy)
            write_delta(make_delta(tiny_backbone, TOY_TASKS[task], strategy, seed), path)
            contents[task, strategy] = path.read_bytes()
        with TestClient(make_app(deltas=(folder,))) as alone:
            answers = {pair: predict(alone, pair).json() for pair in PAIRS}
        made.append(
            {
                pair: Published(contents[pair], answer["version"], scores(answer))
                for pair, answer in answers.items()
            }
        )
    return made


@pytest.fixture
def shelf(
    tiny_backbone: Backbone, versions: list[dict[tuple[str, str], Published]], tmp_path: Path
) -> Shelf:
    """The old versions lie in the folder."""
    paths = {pair: delta_path(tmp_path, tiny_backbone.ref.id, *pair) for pair in PAIRS}
    shelf = Shelf(tmp_path, paths, *versions)
    for pair in PAIRS:
        paths[pair].parent.mkdir(parents=True, exist_ok=True)
        shelf.publish(pair, shelf.old[pair])
    return shelf


def predict(client: TestClient, pair: tuple[str, str]) -> Any:
    task, strategy = pair
    inputs = dict(zip(TOY_TASKS[task].text_fields, ROW.values(), strict=False))
    return client.post(f"/predict/{task}", json={"inputs": inputs, "strategy": strategy})


def scores(answer: Any) -> list[float]:
    (found,) = answer["predictions"]
    return list(found["scores"].values())


@contextmanager
def going_on(step: Callable[[random.Random], None]) -> Iterator[list[int]]:
    """Take steps in a thread until the block ends; yields a list with their number at the end."""
    ended, number = threading.Event(), [0]

    def work() -> None:
        chance = random.Random(7)
        while not ended.is_set():
            step(chance)
            number[0] += 1

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(work)
        try:
            yield number
        finally:
            ended.set()
            future.result()


def ask_all(client: TestClient) -> list[tuple[tuple[str, str], Any]]:
    """Ask for every delta again and again, several clients at a time."""
    asked = [PAIRS[number % len(PAIRS)] for number in range(REQUESTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        return list(zip(asked, threads.map(lambda pair: predict(client, pair), asked), strict=True))


def check_answer(shelf: Shelf, pair: tuple[str, str], answer: Any) -> bool:
    """Tell whether a delta answered; it may only be the one whose version the answer names."""
    if answer.status_code == 200:
        published = {each.version: each for each in (shelf.old[pair], shelf.new[pair])}
        named = published[answer.json()["version"]]
        assert scores(answer.json()) == pytest.approx(named.scores, abs=1e-5)
        return True
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "delta_unavailable"), answer.text
    assert str(shelf.folder) not in error["message"]
    return False


def test_peers_row_06_an_answer_is_of_the_version_that_it_names(start: Start, shelf: Shelf) -> None:
    """With fewer slots than deltas, a file is read again and again, and is now this, now that."""
    for pair in PAIRS:
        assert shelf.old[pair].scores != pytest.approx(shelf.new[pair].scores, abs=1e-3)
    few = start(deltas=(shelf.folder,), max_slots=3, workers=2, threads=2)

    def replace(chance: random.Random) -> None:
        pair = chance.choice(PAIRS)
        shelf.publish(pair, chance.choice((shelf.old, shelf.new))[pair])

    with going_on(replace) as replaced:
        answers = ask_all(few)
    answered = [check_answer(shelf, pair, answer) for pair, answer in answers]
    assert replaced[0] > 50
    found = {answer.json()["version"] for _, answer in answers if answer.status_code == 200}
    assert found & {shelf.new[pair].version for pair in PAIRS}, "no replaced file was served"
    assert sum(answered) > REQUESTS / 2
    for pair in PAIRS:
        shelf.publish(pair, shelf.old[pair])
    assert all(check_answer(shelf, pair, answer) for pair, answer in ask_all(few))


def test_a_request_that_runs_again_is_charged_once(start: Start, shelf: Shelf) -> None:
    """Its key allows one request a minute, and the first try finds that the file was replaced."""
    secret = "dbk_a-secret-of-this-test"
    few = start(
        deltas=(shelf.folder,),
        max_slots=1,
        keys=f'one = {{sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}", tasks = ["*"], '
        'scopes = ["predict"], requests_per_minute = 1}',
    )
    few.headers["X-API-Key"] = secret
    (loaded,) = few.get("/deltas?status=loaded").json()["deltas"]
    pair = next(pair for pair in PAIRS if pair != (loaded["task"], loaded["strategy"]))
    shelf.publish(pair, shelf.new[pair])
    answer = predict(few, pair)
    assert (answer.status_code, answer.json().get("version")) == (200, shelf.new[pair].version)
    assert predict(few, pair).status_code == 429


@pytest.mark.slow
@pytest.mark.parametrize(
    "slots", [0, pytest.param(3, id="3, and each file replaced by an equal one")]
)
def test_peers_row_07_no_request_fails_during_1000_replacements(
    start: Start, shelf: Shelf, slots: int
) -> None:
    """Resident deltas answer whatever becomes of their files; others may be published again."""
    server = start(deltas=(shelf.folder,), max_slots=slots, workers=2, threads=2)

    def replace(chance: random.Random) -> None:
        pair = chance.choice(PAIRS)
        versions = shelf.old if slots else chance.choice((shelf.old, shelf.new))
        shelf.publish(pair, versions[pair])

    total = 0
    while total < 1000:
        with going_on(replace) as replaced:
            answers = ask_all(server)
        assert all(check_answer(shelf, pair, answer) for pair, answer in answers)
        total += replaced[0]


def test_peers_row_08_loads_stop_no_prediction(
    start: Start, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no load ends, resident deltas answer; then the others do, from the same batches."""
    is_open, load, loading = threading.Event(), Loader.load, threading.Event()
    is_open.set()

    def wait(loader: Loader, record: Record) -> StagedDelta:
        if not is_open.is_set():
            loading.set()
        assert is_open.wait(60)
        return load(loader, record)

    monkeypatch.setattr(Loader, "load", wait)
    few = start(deltas=(shelf.folder,), max_slots=3, pinned=("toy2/bitfit", "toy3/top:1"))
    is_open.clear()
    pinned = [("toy2", "bitfit"), ("toy3", "top:1")]
    absent = [pair for pair in PAIRS if pair[0] == "toy68"]
    with ThreadPoolExecutor(len(absent)) as threads:
        waiting = [threads.submit(predict, few, pair) for pair in absent]
        try:
            assert loading.wait(30)
            for pair in pinned * 25:
                assert check_answer(shelf, pair, predict(few, pair))
            assert few.get("/health/ready").status_code == 200
            assert not any(future.done() for future in waiting)
        finally:
            is_open.set()
        for pair, future in zip(absent, waiting, strict=True):
            assert check_answer(shelf, pair, future.result())


@pytest.mark.slow
def test_peers_row_10_a_file_that_vanishes_fails_its_own_requests_with_a_reason(
    start: Start, shelf: Shelf
) -> None:
    """Deleted and put back while batches wait for it; the server goes on."""
    few = start(deltas=(shelf.folder,), max_slots=3, workers=2, threads=2)

    def vanish(chance: random.Random) -> None:
        pair = chance.choice(PAIRS)
        if shelf.paths[pair].exists():
            shelf.paths[pair].unlink()
        else:
            shelf.publish(pair, shelf.old[pair])

    with going_on(vanish) as vanished:
        answers = ask_all(few)
    answered = [check_answer(shelf, pair, answer) for pair, answer in answers]
    assert vanished[0] > 50
    assert 0 < sum(answered) < REQUESTS, "both must have happened"
    shutil.rmtree(shelf.folder)
    for pair in PAIRS:
        check_answer(shelf, pair, predict(few, pair))
    assert few.get("/health/live").status_code == 200
    for pair in PAIRS:
        shelf.paths[pair].parent.mkdir(parents=True, exist_ok=True)
        shelf.publish(pair, shelf.old[pair])
        assert check_answer(shelf, pair, predict(few, pair))
