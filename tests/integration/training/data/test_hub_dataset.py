"""Data sets of the hub become custom tasks, against a server on this machine that answers like it.

`datasets` reads its settings at import, so each case is a process of its own.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import ClassLabel, Dataset

from tests.integration.hub_server import COMMIT, Ask, Hub, serve
from tests.unit.training.data.test_hub_dataset import CONFIGS, NAMES, rows_of

SCRIPT = """
import json, time
import datasets
from training.data.hub_dataset import load_data_set
from training.errors import TrainingError
from training.data.custom import CustomTask
start = time.perf_counter()
try:
    data = load_data_set({text!r}, ("train", None), CustomTask(("text",), "label", "mine"))
    answer = dict(source=data.source, digest=data.digest, labels=data.task.labels)
    answer |= dict(data_set=data.data_set.spelled, rows=len(data.train))
except TrainingError as error:
    answer = dict(error=type(error).__name__, message=str(error))
print(json.dumps(answer | dict(seconds=time.perf_counter() - start)))
"""


@pytest.fixture
def ask(ask_afresh: Ask) -> Ask:
    """A function (endpoint, text="Owner/MyRows", **settings) -> the result of `load_data_set`."""

    def load_rows(endpoint: str, text: str = "Owner/MyRows", **settings: str) -> dict[str, Any]:
        return ask_afresh(SCRIPT.format(text=text), endpoint, **settings)

    return load_rows


def parquet(rows: Dataset) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with a data set of class labels, which has no README."""
    rows = rows_of([0, 1] * 20, ClassLabel(names=["worse", "better"]))
    yield from serve(Hub({"train.parquet": parquet(rows)}, "Owner/MyRows"))


@pytest.mark.slow
def test_rows_come_from_the_hub_then_from_its_cache(hub: Hub, ask: Ask) -> None:
    fresh = ask(hub.url)
    assert (fresh["source"], fresh["labels"]) == ("hub", ["worse", "better"])
    assert fresh["data_set"] == f"Owner/MyRows@{COMMIT}"
    assert fresh["rows"] == 32
    offline = ask(hub.url, HF_HUB_OFFLINE="1")
    assert (offline["digest"], offline["data_set"]) == (fresh["digest"], fresh["data_set"])
    assert f"taking the cached copy of commit {COMMIT}, since offline mode" in offline["warnings"]
    before = hub.num_requests
    pinned = ask(hub.url, f"Owner/MyRows@{COMMIT}")
    assert pinned["digest"] == fresh["digest"]
    assert hub.num_requests == before
    tagged = ask(hub.url, "Owner/MyRows@v1", HF_HUB_OFFLINE="1")
    assert "No copy of v1 is in its cache" in tagged["message"]
    hub.repository = "Owner/Gone"
    gone = ask(hub.url, "Owner/MyRows@v1")
    assert "there is no such data set, or you may not read it" in gone["message"]
    assert "No copy of v1 is in its cache" in gone["message"]
    latest = ask(hub.url)
    assert latest["digest"] == fresh["digest"]
    assert "taking the cached copy" in latest["warnings"]


@pytest.mark.slow
def test_a_pinned_commit_is_found_beside_a_newer_one(hub: Hub, ask: Ask) -> None:
    """A pinned commit is found beside a newer one; without a pin the newest is taken."""
    older = ask(hub.url)
    hub.commit = "d" * 40
    hub.files = {"train.parquet": parquet(rows_of(["no", "yes", "perhaps"] * 10))}
    newer = ask(hub.url)
    assert older["digest"] != newer["digest"]
    offline = {"HF_HUB_OFFLINE": "1"}
    for name, wanted in ((f"Owner/MyRows@{COMMIT}", older), ("Owner/MyRows", newer)):
        found = ask(hub.url, name, **offline)
        assert (found["digest"], found["data_set"]) == (wanted["digest"], wanted["data_set"])
    missing = ask(hub.url, f"Owner/MyRows@{'e' * 40}", **offline)
    assert f"No copy of {'e' * 40} is in its cache" in missing["message"]


@pytest.mark.slow
def test_text_files_of_the_hub_are_read_like_the_users_own(ask: Ask) -> None:
    """They are found again in the hub's cache: `datasets`, which would guess, has no copy."""
    labels = ["NA", "007", "7"] * 10
    lines = "".join(f"text {n},{label}\n" for n, label in enumerate(labels))
    files = {"README.md": b"# Rows\n", "train.csv": f"text,label\n{lines}".encode()}
    for hub in serve(Hub(files, "Owner/MyRows")):
        fresh = ask(hub.url)
        assert (fresh["source"], fresh["labels"]) == ("hub", ["007", "7", "NA"])
        assert fresh["data_set"] == f"Owner/MyRows@{COMMIT}"
        for name in ("Owner/MyRows", f"Owner/MyRows@{COMMIT}"):
            offline = ask(hub.url, name, HF_HUB_OFFLINE="1")
            assert (offline["digest"], offline["data_set"]) == (fresh["digest"], fresh["data_set"])


@pytest.mark.slow
def test_a_name_that_the_hub_does_not_have_is_an_error(hub: Hub, ask: Ask) -> None:
    found = ask(hub.url, "Owner/OtherRows")
    assert found["error"] == "HubUnreachableError"
    assert found["message"].startswith("data set Owner/OtherRows: no such folder, and the Hugging")
    assert "there is no such data set, or you may not read it" in found["message"]


@pytest.mark.slow
def test_a_configuration_that_the_hub_does_not_have_is_an_error(ask: Ask) -> None:
    files = {"README.md": CONFIGS}
    files |= {f"{name}/train.parquet": parquet(NAMES) for name in ("films", "books")}
    for hub in serve(Hub(files, "Owner/MyRows")):
        assert ask(hub.url, "Owner/MyRows:books")["rows"] == 32
        found = ask(hub.url)
        assert "several configurations (films, books); add one to its name" in found["message"]
        found = ask(hub.url, "Owner/MyRows:flims")
        assert "no configuration 'flims'; it has films, books. Did you" in found["message"]


@pytest.mark.slow
def test_a_hub_that_never_answers_is_noticed_within_five_seconds(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = ask(endpoint)
    assert found["error"] == "HubUnreachableError"
    assert endpoint in found["message"]
    assert found["seconds"] < 5 + 1.5  # loading takes some time besides the wait
