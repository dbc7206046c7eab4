"""The hub as a source of rows, against a server that answers like one on this machine.

`datasets` reads its settings at import, so each case is a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltas.backbone.hub import PROBE_S

Ask = Callable[..., dict[str, Any]]
COMMIT = "c" * 40
LABELS = ("entailment", "not_entailment")


def card(labels: tuple[str, ...]) -> bytes:
    """The data set's README: where the files are, what the label codes mean."""
    names = "\n".join(f"            '{code}': {label}" for code, label in enumerate(labels))
    return (
        textwrap.dedent(
            """\
        ---
        dataset_info:
        - config_name: rte
          features:
          - name: sentence1
            dtype: string
          - name: sentence2
            dtype: string
          - name: label
            dtype:
              class_label:
                names:
        {}
          - name: idx
            dtype: int32
        configs:
        - config_name: rte
          data_files:
          - split: train
            path: rte/train-*
          - split: validation
            path: rte/validation-*
        ---
        """
        )
        .format(names.replace("            ", "          "))
        .encode()
    )


def parquet(labels: list[int]) -> bytes:
    rows = range(len(labels))
    table = pa.table(
        {
            "sentence1": [f"first {n}" for n in rows],
            "sentence2": [f"second {n}" for n in rows],
            "label": pa.array(labels, pa.int64()),
            "idx": pa.array(rows, pa.int32()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def rte_files(labels: tuple[str, ...]) -> dict[str, bytes]:
    """What the repository of GLUE has of RTE."""
    return {
        "README.md": card(labels),
        "rte/train-00000-of-00001.parquet": parquet([0, 1, 1, 0]),
        "rte/validation-00000-of-00001.parquet": parquet([1, 0]),
    }


class Hub(ThreadingHTTPServer):
    """Serves one data set; counts requests."""

    daemon_threads = True

    def __init__(
        self, files: dict[str, bytes] | None = None, repository: str = "nyu-mll/glue"
    ) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.num_requests = 0
        self.repository = repository
        self.commit = COMMIT
        self.files = files or rte_files(LABELS)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """What the hub says about files, folders and the repository."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        self.server.num_requests += 1

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        files, repository, commit = self.server.files, self.server.repository, self.server.commit
        prefix = f"/datasets/{repository}/resolve/"
        if path.startswith(prefix):
            name = path.removeprefix(prefix).split("/", 1)[1]
            if name in files:
                tag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                self._send(200, files[name], {"ETag": tag, "X-Repo-Commit": commit})
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif "/tree/" in path:
            folder = path.partition(f"/tree/{commit}")[2].strip("/")
            self._send(200, json.dumps(self._listing(folder)).encode(), {})
        elif path.startswith(f"/api/datasets/{repository}"):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": commit, "tags": [], "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _listing(self, folder: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, content in self.server.files.items():
            path = PurePosixPath(name)
            if str(path.parent) == (folder or "."):
                found.append({"type": "file", "path": name, "size": len(content), "oid": "1" * 40})
            elif not folder:
                parent = str(path.parent)
                found.append({"type": "directory", "path": parent, "size": 0, "oid": "0" * 40})
        return found

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with a few rows of RTE."""
    yield from serve(Hub())


@pytest.fixture
def permuted_hub() -> Iterator[Hub]:
    """The same rows under a README whose label names stand in another order."""
    yield from serve(Hub(rte_files(LABELS[::-1])))


SCRIPT = """
import json, time
import datasets
from training.data.glue import load_task
from training.errors import DataError
start = time.perf_counter()
try:
    data = load_task("rte", {data!r})
    answer = dict(source=data.source, note=data.note, digest=data.digest, labels=data.train.labels)
except DataError as error:
    answer = dict(error=type(error).__name__, message=str(error))
print(json.dumps(answer | dict(seconds=time.perf_counter() - start)))
"""


BACKBONE_SCRIPT = """
import json, time
from deltas import BackboneError, load_backbone
import huggingface_hub
start = time.perf_counter()
try:
    load_backbone("google-bert/bert-base-uncased")
except BackboneError as error:
    print(json.dumps(dict(seconds=time.perf_counter() - start, message=str(error))))
"""


@pytest.fixture
def load(ask_afresh: Ask) -> Ask:
    """A function (endpoint, data="hub", **settings) -> what `load_task` makes of RTE."""

    def load_rte(endpoint: str, data: str | None = "hub", **settings: str) -> dict[str, Any]:
        return ask_afresh(SCRIPT.format(data=data), endpoint, **settings)

    return load_rte


@pytest.mark.slow
def test_rows_from_the_hub_then_from_the_cache(hub: Hub, load: Ask) -> None:
    fresh = load(hub.url)
    assert fresh["source"] == "hub"
    assert fresh["labels"] == [0, 1, 1, 0]
    assert fresh["note"] == "sample of the GLUE train set: 4 of 2,490 rows"
    asked = hub.num_requests
    assert asked > 0
    cached = load(hub.url, data=None)
    assert (cached["source"], cached["digest"]) == ("hub", fresh["digest"])
    assert hub.num_requests == asked, "a complete cached copy needs no hub"
    offline = load(hub.url, HF_HUB_OFFLINE="1")
    assert offline["digest"] == fresh["digest"]


@pytest.mark.slow
def test_label_names_in_another_order_are_refused(permuted_hub: Hub, load: Ask) -> None:
    answer = load(permuted_hub.url)
    assert answer["error"] == "DataError"
    assert "answers would be permuted" in answer["message"]


@pytest.mark.slow
def test_a_hub_without_the_files_is_an_error_not_the_sample(hub: Hub, load: Ask) -> None:
    hub.files = {"README.md": hub.files["README.md"]}
    answer = load(hub.url, data=None)
    assert answer["error"] == "DataError"
    assert "could not be read" in answer["message"]
    assert "--data DIR" in answer["message"]


@pytest.mark.slow
def test_a_hub_that_never_answers_is_noticed_within_five_seconds(load: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = load(endpoint)
    assert answer["error"] == "HubUnreachableError"
    assert endpoint in answer["message"]
    assert answer["seconds"] < 5 + 1.5  # what loading takes besides the wait, on a busy machine


@pytest.mark.slow
def test_a_backbone_of_a_silent_hub_is_refused_within_five_seconds(ask_afresh: Ask) -> None:
    """The hub's libraries would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = ask_afresh(BACKBONE_SCRIPT, endpoint)
    assert answer["seconds"] < 5 + 1.5
    assert re.search(f"{endpoint} (did not answer|can.t be reached)", answer["message"])


@pytest.mark.slow
def test_without_a_hub_the_sample_comes_with_a_loud_warning(load: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        endpoint = f"http://127.0.0.1:{gone.getsockname()[1]}"
    answer = load(endpoint, data=None)
    assert answer["source"] == "sample"
    assert "generated sample, not GLUE" in answer["note"]
    assert "NOT REAL DATA" in answer["warnings"]
    assert f"{endpoint} can't be reached" in answer["warnings"]


@pytest.mark.slow
def test_a_malformed_endpoint_counts_as_no_hub(load: Ask) -> None:
    answer = load(endpoint := "nonsense")
    assert answer["error"] == "HubUnreachableError"
    assert endpoint in answer["message"]


def test_the_wait_for_the_hub_leaves_room_in_five_seconds() -> None:
    assert PROBE_S < 5
