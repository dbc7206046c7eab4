"""The answers that the reports need, from a real server, and from files that were uploaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone, delta_path, read_manifest
from deltas.store import predictions as stored
from deltas.store.predictions import predictions_path
from frontend.client import Client, open_session
from frontend.errors import ServerError
from frontend.reports import answers
from frontend.reports.answers import (
    describe,
    has_no_predictions,
    is_missing,
    list_deltas,
    norms_of,
    predictions_of,
    read_upload,
)
from tests.browser.conftest import Server

KEY = ("toy2", "bitfit")


@pytest.fixture(scope="module")
def client(tiny_deltas: Path, tiny_backbone: Backbone) -> Iterator[Client]:
    """A client of a server of the tiny deltas."""

    def make_app() -> Any:
        settings = Settings(deltas=(tiny_deltas,), zoo=False, warm_up=False)
        return create_app(settings, backbone=tiny_backbone)

    server = Server(make_app)
    server.start()
    yield Client(open_session(server.url), server.url)
    server.stop()


@pytest.fixture(scope="module")
def version(tiny_deltas: Path, tiny_backbone: Backbone) -> str:
    """The version of toy2/bitfit."""
    return read_manifest(delta_path(tiny_deltas, tiny_backbone.ref.id, *KEY))[1]


def test_pages_of_predictions_are_put_together(
    client: Client, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictions_of(client, *KEY, version, None)
    assert (len(whole.rows), whole.next, whole.version) == (6, None, version)
    monkeypatch.setattr(stored, "_MAX_NUMBERS", 4)  # two rows in an answer
    assert predictions_of(client, *KEY, version, None) == whole
    monkeypatch.setattr(answers, "_MAX_PAGES", 2)
    cut = predictions_of(client, *KEY, version, None)
    assert (cut.rows, cut.next) == (whole.rows[:4], 4)


def test_a_file_says_the_same_as_the_server(
    client: Client, version: str, tiny_deltas: Path, tiny_backbone: Backbone
) -> None:
    path = predictions_path(delta_path(tiny_deltas, tiny_backbone.ref.id, *KEY))
    assert read_upload(path.read_bytes(), None) == predictions_of(client, *KEY, version, None)


def test_files_that_hold_no_predictions_are_told(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"text": ["secret"]}), path)
    ragged = {"split": ["a"], "row": ["x"], "gold": [0], "logits": [[0.0]]}
    for content in (b"", b"no parquet", path.read_bytes()):
        with pytest.raises(ServerError, match="not a file of predictions"):
            read_upload(content, None)
    pq.write_table(pa.table(ragged), path)
    with pytest.raises(ServerError):
        read_upload(path.read_bytes(), None)


def test_lists_details_and_changes(client: Client, version: str) -> None:
    page = list_deltas(client, task="toy2", limit=2)
    assert (page.total, len(page.deltas)) == (5, 2)
    assert page.next
    assert describe(client, *KEY, version).version == version
    found = norms_of(client, *KEY, version)
    assert found.version == version
    assert {each.kind for each in found.norms} == {"bias"}


def test_what_is_missing_is_told_apart(client: Client, version: str) -> None:
    listed = list_deltas(client, task="toy2", strategy="head").deltas
    with pytest.raises(ServerError) as none:
        predictions_of(client, "toy2", "head", listed[0].version, None)
    assert has_no_predictions(none.value)
    assert not is_missing(none.value)
    with pytest.raises(ServerError) as unknown:  # as an earlier server takes a new route
        describe(client, "toy2", "bitfit/norms-of-today", version)
    assert is_missing(unknown.value)
    assert not has_no_predictions(unknown.value)
