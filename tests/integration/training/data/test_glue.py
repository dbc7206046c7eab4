"""The rows of GLUE come from the hub, against a server on this machine that answers like it.

The hub's library reads its settings at import, so each case is a process of its own.
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.hub_server import Ask, Hub, serve

LABELS = ("entailment", "not_entailment")


def parquet(labels: list[int], names: tuple[str, ...] = LABELS) -> bytes:
    """A split as `datasets` writes it: its header says what the label codes mean."""
    rows = range(len(labels))
    table = pa.table(
        {
            "sentence1": [f"first {n}" for n in rows],
            "sentence2": [f"second {n}" for n in rows],
            "label": pa.array(labels, pa.int64()),
            "idx": pa.array(rows, pa.int32()),
        }
    )
    info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), buffer)
    return buffer.getvalue()


def glue_hub(names: tuple[str, ...] = LABELS) -> Hub:
    """A hub with a few rows of RTE and CoLA."""
    files = {
        "README.md": b"GLUE",
        "rte/train-00000-of-00001.parquet": parquet([0, 1, 1, 0], names),
        "rte/validation-00000-of-00001.parquet": parquet([1, 0], names),
        "cola/train-00000-of-00001.parquet": b"of another task",
    }
    return Hub(files, "nyu-mll/glue")


@pytest.fixture
def hub() -> Iterator[Hub]:
    yield from serve(glue_hub())


SCRIPT = """
import json, time
import huggingface_hub
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


@pytest.fixture
def load(ask_afresh: Ask) -> Ask:
    """A function (endpoint, data="hub", **settings) -> the result of `load_task` for RTE."""

    def load_rte(endpoint: str, data: str | None = "hub", **settings: str) -> dict[str, Any]:
        return ask_afresh(SCRIPT.format(data=data), endpoint, **settings)

    return load_rte


@pytest.mark.slow
def test_rows_come_from_the_hub_then_from_the_cache(hub: Hub, load: Ask) -> None:
    fresh = load(hub.url)
    assert fresh["source"] == "hub"
    assert fresh["labels"] == [0, 1, 1, 0]
    assert fresh["note"] == "sample of the GLUE train set: 4 of 2,490 rows"
    asked = hub.num_requests
    assert asked > 0
    cached = load(hub.url, data=None)
    assert (cached["source"], cached["digest"]) == ("hub", fresh["digest"])
    assert hub.num_requests == asked, "a complete cached copy needs no hub"
    for setting in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        assert load(hub.url, **{setting: "1"})["digest"] == fresh["digest"]


@pytest.mark.slow
def test_a_partial_copy_in_the_cache_is_not_used(hub: Hub, load: Ask) -> None:
    """The hub's files may change, or a download may be interrupted, between two splits."""
    whole = dict(hub.files)
    hub.files["rte/validation-00000-of-00001.parquet"] = b""
    del hub.files["rte/train-00000-of-00001.parquet"]
    assert load(hub.url)["error"] == "DataError"
    offline = load(hub.url, HF_HUB_OFFLINE="1")
    assert offline["error"] == "HubUnreachableError"
    hub.files, hub.commit = whole, "d" * 40
    assert load(hub.url)["labels"] == [0, 1, 1, 0]


@pytest.mark.slow
def test_label_names_in_another_order_are_refused(load: Ask) -> None:
    for hub in serve(glue_hub(LABELS[::-1])):
        answer = load(hub.url)
    assert answer["error"] == "DataError"
    assert "answers would be permuted" in answer["message"]


@pytest.mark.slow
def test_a_hub_without_the_files_is_an_error_not_the_sample(hub: Hub, load: Ask) -> None:
    hub.files = {"README.md": hub.files["README.md"]}
    answer = load(hub.url, data=None)
    assert answer["error"] == "DataError"
    assert "could not be read: no rte/train-*.parquet" in answer["message"]
    assert "--data DIR" in answer["message"]


@pytest.mark.slow
def test_a_hub_that_never_answers_is_noticed_within_five_seconds(load: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = load(endpoint)
    assert answer["error"] == "HubUnreachableError"
    assert endpoint in answer["message"]
    assert answer["seconds"] < 5 + 1.5  # loading takes some time besides the wait


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
