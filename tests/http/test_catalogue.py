"""Tasks, deltas, manifests and the benchmark, all from what the files say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.http import catalogue
from app.http.schemas import Benchmark, TaskList
from deltas import Backbone, TaskSpec, delta_path, read_delta, read_manifest, write_delta
from deltas.manifest import Calibration, DataSetRef, DecisionRule, TaskAbout, TaskExample
from deltas.publish.study import StudyRow, write_study
from tests.factories import TOY_TASKS, make_delta

CheckError = Callable[..., dict[str, Any]]
STRATEGIES = ["bitfit", "head", "layernorm", "random:0.05", "top:1"]
OF_A_TASK = ("strategy", "version", "is_default", "calibration", "decision")


def test_the_words_of_a_tasks_author(
    start: Callable[..., TestClient], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    about = TaskAbout(question="Is it good?", examples=(TaskExample(texts=("A film.",)),))
    delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", about=about)
    plain = make_delta(tiny_backbone, TOY_TASKS["toy2"], "bitfit")
    for each, name in ((delta, "head"), (plain, "bitfit")):
        write_delta(each, delta_path(tmp_path, tiny_backbone.ref.id, "toy2", name))
    (task,) = start(deltas=(tmp_path,)).get("/tasks").json()["tasks"]
    assert task["about"] == {
        "description": "",
        "question": "Is it good?",
        "examples": [{"texts": ["A film."], "answer": ""}],
    }


def test_tasks(client: TestClient, toy_tasks: dict[str, TaskSpec]) -> None:
    tasks = client.get("/tasks").json()["tasks"]
    assert [task["task"] for task in tasks] == sorted(toy_tasks)
    deltas = client.get("/deltas").json()["deltas"]
    for task in tasks:
        spec = toy_tasks[task["task"]]
        assert task.pop("deltas") == [
            {name: delta[name] for name in OF_A_TASK}
            for delta in deltas
            if delta["task"] == spec.name
        ]
        assert task.pop("about") is None
        assert task.pop("changed_at") > 0
        assert task == {
            "task": spec.name,
            "kind": spec.kind,
            "labels": list(spec.labels),
            "text_fields": list(spec.text_fields),
            "max_length": spec.max_length,
            "strategies": STRATEGIES,
            "default_strategy": "bitfit",
        }


def test_a_task_shows_how_each_of_its_deltas_decides(
    start: Callable[..., TestClient],
    make_delta: Callable[..., Any],
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    tmp_path: Path,
) -> None:
    scale, limit = Calibration(scale=(1.5,)), DecisionRule(confidence="max_logit", limit=2.5)
    given = {"calibration": scale, "decision": limit}
    for seed, changes in ((0, given), (1, {})):
        delta = make_delta(tiny_backbone, toy_tasks["toy2"], "bitfit", seed=seed, **changes)
        write_delta(delta, tmp_path / f"{seed}.safetensors")
    client = start(deltas=(tmp_path,))
    (task,) = client.get("/tasks").json()["tasks"]
    found = {
        delta["is_default"]: (delta["calibration"], delta["decision"]) for delta in task["deltas"]
    }
    assert found == {
        True: (
            {"scale": [1.5], "shift": []},
            {"thresholds": [], "confidence": "max_logit", "limit": 2.5},
        ),
        False: (None, None),
    }
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    described = schemas["TaskInfo"]["properties"]["deltas"]["items"]["$ref"].split("/")[-1]
    assert {"calibration", "decision"} <= set(schemas[described]["properties"])
    assert set(schemas["DecisionRule"]["properties"]) == {"thresholds", "confidence", "limit"}


def test_deltas(client: TestClient, tiny_deltas: Path, toy_tasks: dict[str, TaskSpec]) -> None:
    body = client.get("/deltas").json()
    assert body["rejected"] == []
    assert len(body["deltas"]) == len(toy_tasks) * len(STRATEGIES)
    sizes = sorted(path.stat().st_size for path in tiny_deltas.rglob("*.safetensors"))
    assert sorted(delta["size_bytes"] for delta in body["deltas"]) == sizes
    first = body["deltas"][0]
    assert first["is_default"] is True
    assert first["metrics"]["validation"] == {
        "rows": 20,
        "values": {"accuracy": 0.25},
        "note": "",
        "reliability": None,
    }
    assert first["calibration"] is first["decision"] is None


def test_one_delta(client: TestClient, tiny_deltas: Path, tiny_backbone: Backbone) -> None:
    path = delta_path(tiny_deltas, tiny_backbone.ref.id, "toy3", "random:0.05")
    manifest, version = read_manifest(path)
    body = client.get("/deltas/toy3/random:0.05").json()
    assert body == {
        "version": version,
        "size_bytes": path.stat().st_size,
        "is_default": True,
        "manifest": manifest.model_dump(mode="json"),
    }
    assert client.get(f"/deltas/toy3/random%3A0.05?version={version}").json() == body


def test_a_delta_names_the_data_set_that_it_was_trained_on(
    start: Callable[..., TestClient], tiny_deltas: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    delta = read_delta(delta_path(tiny_deltas, tiny_backbone.ref.id, "toy2", "head"))
    named = DataSetRef(name="owner/films", revision="c" * 40, train_split="train")
    training = delta.manifest.training.model_copy(update={"data": "hub", "data_set": named})
    manifest = delta.manifest.model_copy(update={"training": training})
    write_delta(replace(delta, manifest=manifest), tmp_path / "a.safetensors")
    (found,) = start(deltas=(tmp_path,)).get("/deltas").json()["deltas"]
    assert found["trained_on"] == f"owner/films@{'c' * 40}"


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("/deltas/toy33/bitfit", "toy3"),
        ("/deltas/toy3/bitfitt", "bitfit"),
        ("/deltas/toy3/random/0.05", "random:0.05"),
    ],
)
def test_an_unknown_delta(
    client: TestClient, check_error: CheckError, path: str, suggestion: str
) -> None:
    error = check_error(client.get(path), 404, "not_found")
    assert suggestion in error["details"]["suggestions"]


def test_an_unknown_version(client: TestClient, check_error: CheckError) -> None:
    check_error(client.get("/deltas/toy3/bitfit?version=nope"), 404, "not_found")


def test_benchmark(client: TestClient, tiny_backbone: Backbone) -> None:
    body = client.get("/benchmark").json()
    assert body["backbone"] == {
        "id": "tiny-bert",
        "fingerprint": tiny_backbone.ref.fingerprint,
        "parameters": tiny_backbone.num_parameters,
        "size_bytes": tiny_backbone.num_bytes,
    }
    rows = {(row["task"], row["strategy"]): row for row in body["rows"]}
    row = rows["toyreg", "layernorm"]
    assert (row["metric"], row["value"]) == ("pearson", 0.25)
    assert (row["split"], row["split_rows"]) == ("validation", 20)
    assert (
        row["trained_share"]
        == row["trainable_parameters"]
        / (client.get("/deltas/toyreg/layernorm").json()["manifest"]["total_parameters"])
    )
    assert (row["learning_rate"], row["epochs"], row["seed"], row["data"]) == (1e-3, 1, 0, "files")
    assert rows["toy2", "head"]["trained_share"] < rows["toy2", "top:1"]["trained_share"]


def test_benchmark_serves_the_study_of_this_backbone(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "study.json"
    monkeypatch.setattr(catalogue, "study_path", lambda: path)
    assert start().get("/benchmark").json()["study"] == []
    row = {
        "part": "main",
        "task": "rte",
        "strategy": "bitfit",
        "backbone": "tiny-bert",
        "metric": "accuracy",
        "mean": 0.6,
        "spread": 0.01,
        "seeds": 5,
        "split": "validation",
        "split_rows": 277,
        "split_note": "",
        "train_rows": 2241,
        "selection_rows": 249,
        "train_note": "",
        "learning_rate": 0.002,
        "epochs": 3.0,
        "trainable_parameters": 100,
        "trained_share": 0.01,
        "size_bytes": 1000,
        "machine": "a CPU",
        "seconds": None,
        "cpu_seconds": 3.5,
        "peak_bytes": 10**9,
        "command": "python -m training.fit --task rte",
    }
    ours = StudyRow.model_validate(row)
    write_study(path, [ours, ours.model_copy(update={"backbone": "another"})])
    assert start().get("/benchmark").json()["study"] == [row]


def test_listings_and_probes_look_at_no_delta(start: Callable[..., TestClient]) -> None:
    """With thousands of deltas, writing it would block the event loop."""
    client = start()
    paths = ("/", "/tasks", "/deltas", "/benchmark")
    expected = [client.get(path).content for path in paths]
    store = client.app.state.serving.engine.store  # type: ignore[attr-defined]
    store.__dict__["records"] = store.__dict__["_by_task"] = object()
    assert [client.get(path).content for path in paths] == expected
    assert client.get("/health/ready").status_code == 200


def test_a_damaged_file_is_listed_with_its_reason_and_harms_no_other(
    start: Callable[..., TestClient],
    tiny_deltas: Path,
    tiny_backbone: Backbone,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    check_error: CheckError,
) -> None:
    shutil.copytree(tiny_deltas, tmp_path, dirs_exist_ok=True)
    damaged = delta_path(tmp_path, tiny_backbone.ref.id, "toy2", "head")
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 0x40
    damaged.write_bytes(content)
    delta_path(tmp_path, tiny_backbone.ref.id, "toy3", "head").write_bytes(b"\x80\x04pickle")
    caplog.set_level("INFO")
    client = start(deltas=(tmp_path,))
    rejected = client.get("/deltas").json()["rejected"]
    assert len(rejected) == 2
    files = sorted(item["file"] for item in rejected)
    assert files == ["tiny-bert/toy2/head.safetensors", "tiny-bert/toy3/head.safetensors"]
    assert all(item["reason"] for item in rejected)
    assert str(tmp_path) not in client.get("/deltas").text, "where files lie is our business"
    assert caplog.text.count("not served") == 2
    response = client.post("/predict/toy2", json={"inputs": "x", "strategy": "head"})
    check_error(response, 404, "not_found")
    assert client.post("/predict/toy2", json={"inputs": "x"}).status_code == 200
    assert "head" not in client.get("/tasks").json()["tasks"][0]["strategies"]


def test_the_first_page(client: TestClient, toy_tasks: dict[str, TaskSpec]) -> None:
    body = client.get("/").json()
    assert body["name"] == "DeltaBERT"
    assert body["tasks"] == sorted(toy_tasks)


def test_the_start_is_logged(
    start: Callable[..., TestClient], tiny_backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    start(max_batch_tokens=777)
    assert "max_batch_tokens=777" in caplog.text
    assert tiny_backbone.ref.fingerprint in caplog.text
    assert "serving 25 deltas of 5 tasks" in caplog.text


@pytest.mark.parametrize("path", ["/tasks", "/deltas", "/health/live", "/", "/openapi.json"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    answer, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type"):
        assert head.headers[name] == answer.headers[name]
    text = client.get("/metrics").text
    route = "unmatched" if path == "/openapi.json" else path
    assert f'deltabert_requests_total{{method="HEAD",route="{route}",status="200"}}' in text


def test_head_of_other_paths(client: TestClient) -> None:
    assert client.head("/nope").status_code == 404
    assert client.head("/predict/toy2").status_code == 405
    assert client.head("/tasks/").status_code == 200


@pytest.mark.parametrize("path", ["/tasks/", "/deltas/toy2/bitfit/", "/health/live/"])
def test_a_slash_at_the_end_changes_nothing(client: TestClient, path: str) -> None:
    assert client.get(path).json() == client.get(path.rstrip("/")).json()
    body = {"inputs": "a film"}
    assert client.post("/predict/toy2/", json=body).status_code == 200
    assert client.get("/tasks//").status_code == 404


def test_lists_that_are_written_by_items_have_the_form_of_their_models(client: TestClient) -> None:
    for path, model in (("/tasks", TaskList), ("/benchmark", Benchmark)):
        text = client.get(path).text
        assert model.model_validate_json(text).model_dump_json() == text
